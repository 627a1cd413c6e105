"""The accounts database as SQL: what the image is born with, how users come in, what pg_dumpall makes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from .people import User
from .school import IST

DATABASE, ROLE = "gstudio_psql", "glab"
COLUMNS = (
    "id",
    "password",
    "last_login",
    "is_superuser",
    "username",
    "first_name",
    "last_name",
    "email",
    "is_staff",
    "is_active",
    "date_joined",
)
TABLES = """CREATE TABLE public.auth_user (
    id integer NOT NULL,
    password character varying(128) NOT NULL,
    last_login timestamp with time zone NOT NULL,
    is_superuser boolean NOT NULL,
    username character varying(30) NOT NULL,
    first_name character varying(30) NOT NULL,
    last_name character varying(30) NOT NULL,
    email character varying(75) NOT NULL,
    is_staff boolean NOT NULL,
    is_active boolean NOT NULL,
    date_joined timestamp with time zone NOT NULL
);
ALTER TABLE public.auth_user OWNER TO glab;
CREATE TABLE public.auth_group (
    id integer NOT NULL,
    name character varying(80) NOT NULL
);
ALTER TABLE public.auth_group OWNER TO glab;
CREATE TABLE public.django_session (
    session_key character varying(40) NOT NULL,
    session_data text NOT NULL,
    expire_date timestamp with time zone NOT NULL
);
ALTER TABLE public.django_session OWNER TO glab;
"""
KEYS = """ALTER TABLE ONLY public.auth_user ADD CONSTRAINT auth_user_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.auth_user ADD CONSTRAINT auth_user_username_key UNIQUE (username);
"""


def _time(when: datetime) -> str:
    text = when.astimezone(IST).strftime("%Y-%m-%d %H:%M:%S.%f").rstrip("0").rstrip(".")
    return text + "+05:30"


def _bool(value: bool) -> str:
    return "t" if value else "f"


def fields(user: User) -> tuple[str, ...]:
    """Return a user's auth_user row, in the order of COLUMNS."""
    staff = _bool(user.is_superuser)
    return (
        str(user.id),
        user.password,
        _time(user.last_login),
        staff,
        user.username,
        user.first_name,
        user.last_name,
        f"{user.username}@example.org",
        staff,
        "t",
        _time(user.date_joined),
    )


def copy_block(users: Sequence[User]) -> str:
    """Return the COPY statement and its data."""
    rows = "".join("\t".join(fields(user)) + "\n" for user in users)
    return f"COPY public.auth_user ({', '.join(COLUMNS)}) FROM stdin;\n{rows}\\.\n"


def birth(users: Sequence[User]) -> str:
    """Return what makes the image's own database, for psql."""
    return (
        f"CREATE ROLE {ROLE} LOGIN;\n"
        f"CREATE DATABASE {DATABASE} OWNER {ROLE} ENCODING 'UTF8' TEMPLATE template0;\n"
        f"\\connect {DATABASE}\n{TABLES}{copy_block(users)}{KEYS}"
    )


def upsert(users: Sequence[User]) -> str:
    """Return what adds the users that are missing and renews the others."""
    values = ",\n".join(
        "(" + ", ".join("'" + value.replace("'", "''") + "'" for value in fields(user)) + ")"
        for user in users
    )
    renewed = ", ".join(f"{column} = excluded.{column}" for column in COLUMNS[1:])
    columns = ", ".join(COLUMNS)
    return f"INSERT INTO auth_user ({columns}) VALUES\n{values}\nON CONFLICT (id) DO UPDATE SET {renewed};\n"


def dump(users: Sequence[User]) -> str:
    """Return what pg_dumpall would have written on the morning of the generated day: it restores."""
    return f"""--
-- PostgreSQL database cluster dump
--

SET default_transaction_read_only = off;

SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;

--
-- Roles
--

CREATE ROLE {ROLE};
ALTER ROLE {ROLE} WITH NOSUPERUSER INHERIT NOCREATEROLE NOCREATEDB LOGIN NOREPLICATION NOBYPASSRLS;

--
-- Database "{DATABASE}" dump
--

CREATE DATABASE {DATABASE} WITH TEMPLATE = template0 ENCODING = 'UTF8';
ALTER DATABASE {DATABASE} OWNER TO {ROLE};

\\connect {DATABASE}

{TABLES}
--
-- Data for Name: auth_user; Type: TABLE DATA; Schema: public; Owner: {ROLE}
--

{copy_block(users)}

{KEYS}
--
-- PostgreSQL database dump complete
--

--
-- PostgreSQL database cluster dump complete
--

"""
