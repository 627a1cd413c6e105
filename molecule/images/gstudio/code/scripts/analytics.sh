#!/bin/bash
# The hourly progress export.
cd /home/docker/code/gstudio/gnowsys-ndf || exit 1
/usr/bin/python manage.py export_users_analytics
