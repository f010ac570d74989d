"""The accounting database of a test cluster: a private MariaDB, and slurmdbd before it."""

from __future__ import annotations

import getpass
import os
import subprocess
from collections.abc import Mapping

from tests.slurm.configuration import Shape, slurmdbd_conf
from tests.slurm.daemons import Daemon, until

GRANT = """\
CREATE DATABASE slurm;
CREATE USER slurm@'127.0.0.1' IDENTIFIED BY 'slurm';
CREATE USER slurm@localhost IDENTIFIED BY 'slurm';
GRANT ALL ON slurm.* TO slurm@'127.0.0.1';
GRANT ALL ON slurm.* TO slurm@localhost;
"""


class Accounting:
    """Both daemons. ``account`` is the one that exists, and its user is the caller."""

    account = "science"

    def __init__(self, shape: Shape, environment: Mapping[str, str]) -> None:
        self._shape = shape
        self._environment = dict(environment)
        self._folder = shape.base / "database"
        self._socket = self._folder / "socket"
        self._user = [f"--user={'mysql' if os.geteuid() == 0 else getpass.getuser()}"]
        data = [f"--datadir={self._folder}/data", f"--socket={self._socket}", f"--pid-file={self._folder}/pid"]
        where = [f"--port={shape.port + 2}", "--bind-address=127.0.0.1"]
        small = ["--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900"]
        log = shape.base / "log"
        mariadb = ["mariadbd", "--no-defaults", *self._user, *data, *where, *small]
        self._database = Daemon("mariadbd", mariadb, log / "mariadbd.out", environment)
        self._slurmdbd = Daemon("slurmdbd", ["slurmdbd", "-D"], log / "slurmdbd.out", environment)

    def start(self) -> None:
        """Make the database with one cluster, one account and one user in it, and wait until it answers."""
        self._folder.mkdir()
        if os.geteuid() == 0:
            self._run("chown", "mysql", str(self._folder))
        data = f"--datadir={self._folder}/data"
        how = ["--skip-test-db", "--auth-root-authentication-method=normal"]
        self._run("mariadb-install-db", "--no-defaults", *self._user, data, *how)
        self._database.start()
        client = ("--no-defaults", "-u", "root", f"--socket={self._socket}")
        until(lambda: self._works("mariadb-admin", *client, "ping"), "mariadbd answers", 60, self._database.said)
        self._run("mariadb", *client, "-e", GRANT)
        conf = self._shape.base / "etc" / "slurmdbd.conf"
        conf.write_text(slurmdbd_conf(self._shape))
        conf.chmod(0o600)
        self._slurmdbd.start()
        until(lambda: self._works("sacctmgr", "-n", "show", "cluster"), "slurmdbd answers", 60, self._slurmdbd.said)
        self._run("sacctmgr", "-i", "add", "cluster", f"hitl{self._shape.port}")
        self._run("sacctmgr", "-i", "add", "account", self.account)
        self._run("sacctmgr", "-i", "add", "user", getpass.getuser(), f"account={self.account}")

    def stop(self) -> None:
        """End both."""
        self._slurmdbd.end()
        self._database.end()

    def _works(self, *command: str) -> bool:
        done = subprocess.run(command, capture_output=True, check=False, timeout=20, env=self._environment)
        return done.returncode == 0

    def _run(self, *command: str) -> None:
        subprocess.run(command, capture_output=True, check=True, timeout=120, env=self._environment)
