#!/bin/bash
# The hourly backup: dump accounts, copy settings and student files, write the git log, fill the syncthing folder.
# Its habits are those of the real one: no exit code is looked at, a failed dump overwrites the last good one.
sleep "${GSTUDIO_STANDIN_BACKUP_SLEEP:-60}" # for mongo to come up

code=/home/docker/code
settings=$code/gstudio/gnowsys-ndf/gnowsys_ndf
value() { sed -n "s/^$1 *= *['\"]\(.*\)['\"].*/\1/p" $settings/server_settings.py | head -n 1; }
id=$(value GSTUDIO_INSTITUTE_ID)
school=$(value GSTUDIO_INSTITUTE_ID_SECONDARY)
state=${id:0:2}

mkdir -p /data/postgres-dump /data/assessment-media
echo "pg_dumpall > pg_dump_all.sql;" | sudo su - postgres
mv /var/lib/postgresql/pg_dump_all.sql /data/postgres-dump/

rsync -a $code/gstudio/gnowsys-ndf/qbank-lite/webapps/CLIx/datastore/studentResponseFiles /data/assessment-media/
cp $settings/local_settings.py $settings/server_settings.py /data/

log=/data/git-commit-details.log
printf '\nDate : %s\n' "$(date)" > $log
for repository in $code $code/gstudio $code/gstudio/gnowsys-ndf/qbank-lite; do
  cd $repository || continue
  for command in status diff "log -5" branch; do
    printf '\n%s : git %s\n' "$repository" "$command" >> $log
    git $command >> $log 2>&1
  done
done

target=/backups/syncthing/$(date +%Y)/$state/$school-$id/gstudio
mkdir -p "$target"
for item in gstudio-exported-users-analytics-csvs gstudio_tools_logs activity-timestamp-csvs server_settings.py \
  local_settings.py git-commit-details.log system-heartbeat; do
  [ -e /data/$item ] && rsync -a /data/$item "$target/"
done
mkdir -p "$target/qbank"
[ -e /data/qbank/qbank_data.tar.gz ] && rsync -a /data/qbank/qbank_data.tar.gz "$target/qbank/"
exit 0
