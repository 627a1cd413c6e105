#!/bin/bash
# One heartbeat into /data/system-heartbeat. As on the real servers it carries no id of the server.
mkdir -p /data/system-heartbeat
log=/data/system-heartbeat/system-heartbeat-$(date +%Y%m%d-%H%M%S).log
{
  hostname
  echo
  echo
  free -h
  df -h
  du -hs /data/*
  find /data/media -type d | wc -l
  find /data/media -type f | wc -l
  uptime
  ps aux
} > "$log" 2>/dev/null
