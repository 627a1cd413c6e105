#!/bin/bash
# Make the git repositories of the code folder, with a short invented history that is the same in every build.
set -euo pipefail
cd "${1:?the code folder}"
export GIT_AUTHOR_NAME=deployer GIT_AUTHOR_EMAIL=deployer@example.org
export GIT_COMMITTER_NAME=$GIT_AUTHOR_NAME GIT_COMMITTER_EMAIL=$GIT_AUTHOR_EMAIL
git config --system --add safe.directory '*'
git config --system init.defaultBranch master
git config --system gc.auto 0
find . -name gitignore -type f | while read -r file; do mv "$file" "$(dirname "$file")/.gitignore"; done
for repository in gstudio/gnowsys-ndf/qbank-lite OpenAssessmentsClient gstudio .; do
  (
    cd "$repository"
    git init -q
    number=0
    for subject in 'Start' 'Set the time zone' 'Collect heartbeats every hour' 'Name CSVs by the minute' \
      'Raise the timeout of dumps' 'Release r6'; do
      number=$((number + 1))
      export GIT_AUTHOR_DATE="2018-0$number-14T10:00:00+0530" GIT_COMMITTER_DATE="2018-0$number-14T10:00:00+0530"
      echo "$number $subject" >> CHANGES
      if [ "$number" = 6 ]; then git add -A; else git add CHANGES; fi
      git commit -q -m "$subject"
    done
    git branch patch-r6
  )
done
