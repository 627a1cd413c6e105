"""One server or device of the peer's zone: python -m morango_peer.device COMMAND ...

Its database is PEER_DATABASE, its zone PEER_ZONE. Prints one line of JSON.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "morango_peer.settings")
django.setup()

from django.core.management import call_command  # noqa: E402
from django.db import connection, transaction  # noqa: E402
from morango.models.certificates import Certificate, Filter, Key, ScopeDefinition  # noqa: E402
from morango.models.core import Store  # noqa: E402
from morango.sync import controller  # noqa: E402
from morango.sync.controller import MorangoProfileController  # noqa: E402

from morango_peer.models import PROFILE, Student, Visit  # noqa: E402

SCOPE = "zone"
AT_ONCE = 1000
SHORT_SLEEP = 0.01  # seconds; what is left of each of Morango's own sleeps where they are not wanted


def zone(_options):
    """Make the database of the central server, and its zone."""
    _make_database()
    return {"zone": Certificate.generate_root_certificate(SCOPE).id}


def certificate(_options):
    """Make a certificate for a device, at the central server."""
    root = Certificate.objects.get(id=os.environ["PEER_ZONE"])
    key = Key()
    made = Certificate(
        parent=root,
        profile=PROFILE,
        scope_definition=root.scope_definition,
        scope_version=root.scope_version,
        scope_params=root.scope_params,
        public_key=Key(public_key_string=key.get_public_key_string()),
    )
    made.id = made.calculate_uuid()
    root.sign_certificate(made)
    made.save()
    chain = [
        {"id": one.id, "serialized": one.serialized, "signature": one.signature}
        for one in made.get_ancestors(include_self=True)
    ]
    return {"chain": chain, "private_key": key.get_private_key_string()}


def join(options):
    """Make the database of a device, with a certificate from `certificate`."""
    _make_database()
    given = json.loads(Path(options.file).read_text())
    own = Certificate.save_certificate_chain(given["chain"])
    own.private_key = Key(private_key_string=given["private_key"])
    own.save()
    return {"device": own.id}


def write(options):
    """Make visits, as a learning platform does while its students work."""
    # The peer's Python has them on its path: they are the same for both sides.
    from visits import learner_name, user_ids, visits

    students = {}
    for number, id_ in enumerate(user_ids(options.students)):
        student = Student(_morango_source_id=id_, name=learner_name(number))
        student.id = student.calculate_uuid()
        students[id_] = student
    with transaction.atomic():
        if not Student.objects.exists():
            Student.objects.bulk_create(students.values())
    page = []
    for one in visits(options.records, options.seed, of=options.students):
        visit = Visit(
            _morango_source_id=one.id,
            user=students[one.user],
            learner=one.learner,
            content_id=one.content_id,
            kind=one.kind,
            score=one.score,
            payload=one.payload,
        )
        visit.id = visit.calculate_uuid()
        page.append(visit)
        if len(page) == AT_ONCE:
            Visit.objects.bulk_create(page)
            page = []
    Visit.objects.bulk_create(page)
    return {"records": Visit.objects.count()}


def sync(options):
    """Sync once: pull, then push, as Kolibri does; or one of them."""
    slept = [0.0]

    def sleep(seconds):
        seconds = min(seconds, SHORT_SLEEP) if options.no_sleep else seconds
        slept[0] += seconds
        time.sleep(seconds)

    controller.sleep = sleep
    own = Certificate.objects.exclude(_private_key=None).get()
    root = Certificate.objects.get(id=os.environ["PEER_ZONE"])
    network = MorangoProfileController(PROFILE).create_network_connection(options.url)
    session = network.create_sync_session(own, root)
    for way in options.ways.split(","):
        client = session.get_pull_client() if way == "pull" else session.get_push_client()
        client.initialize(Filter(root.id))
        client.run()
        client.finalize()
    network.close_sync_session(session.sync_session)
    network.close()
    left = Visit.objects.count(), Store.objects.filter(dirty_bit=True).count()
    if left[1]:
        sys.exit(f"{left[1]} records came and could not be read")
    return {"slept": round(slept[0], 2), "records": left[0]}


def crowd(options):
    """Let so many other devices have written, each the newest version of one record.

    Run at the server and at the device, it leaves both with the same: nothing is to be synced.
    """
    partition = os.environ["PEER_ZONE"]
    with connection.cursor() as cursor, transaction.atomic():
        cursor.execute(
            "SELECT id FROM morango_store ORDER BY id LIMIT %s OFFSET %s",
            [options.number, options.there],
        )
        for number, (record,) in enumerate(cursor.fetchall(), options.there):
            device = f"{number:032x}"
            cursor.execute(
                "UPDATE morango_store SET last_saved_instance = %s, last_saved_counter = 1 WHERE id = %s",
                [device, record],
            )
            cursor.execute(
                "INSERT INTO morango_recordmaxcounter (instance_id, counter, store_model_id)"
                " VALUES (%s, 1, %s)",
                [device, record],
            )
            cursor.execute(
                "INSERT INTO morango_databasemaxcounter (instance_id, counter, partition) VALUES (%s, 1, %s)",
                [device, partition],
            )
    return {"devices": options.number}


def count(_options):
    """Count what is here."""
    return {"records": Visit.objects.count()}


def _make_database():
    call_command("migrate", run_syncdb=True, verbosity=0)
    ScopeDefinition.objects.create(
        id=SCOPE,
        profile=PROFILE,
        version=1,
        primary_scope_param_key="zone",
        description="A zone",
        read_filter_template="",
        write_filter_template="",
        read_write_filter_template="${zone}",
    )


def main():
    """Run one command."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    for deed in (zone, certificate, count):
        commands.add_parser(deed.__name__).set_defaults(deed=deed)
    added = commands.add_parser("join")
    added.set_defaults(deed=join)
    added.add_argument("file")
    added = commands.add_parser("write")
    added.set_defaults(deed=write)
    added.add_argument("records", type=int)
    added.add_argument("--seed", type=int, default=1)
    added.add_argument("--students", type=int, required=True)
    added = commands.add_parser("sync")
    added.set_defaults(deed=sync)
    added.add_argument("url")
    added.add_argument("ways", help="pull, push, or pull,push")
    added.add_argument("--no-sleep", action="store_true")
    added = commands.add_parser("crowd")
    added.set_defaults(deed=crowd)
    added.add_argument("number", type=int)
    added.add_argument("there", type=int, help="from earlier runs of this command")
    options = parser.parse_args()
    json.dump(options.deed(options), sys.stdout)


if __name__ == "__main__":
    main()
