"""Write the activity timestamps of every user that has Counters. Run by execfile in `manage.py shell`."""

from standin.management import execute_from_command_line, usernames_of_counters

for username in usernames_of_counters():
    print(f"\nUser: {username}")
    # One user whose export raises ends the whole run: so it is on the real servers.
    execute_from_command_line(["manage.py", "activity_timestamp", username])
