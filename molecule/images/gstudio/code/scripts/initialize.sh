#!/bin/bash
# What the container runs: start all services and stay. The stand-in's own program lives outside the volumes.
export PYTHONPATH=/opt/standin
exec /usr/bin/python -m standin serve
