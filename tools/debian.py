"""Get from Debian what a build of CPython needs: its source and the packages.

The source comes through apt with a state of its own, so the system's package lists
stay as they are, and apt checks Debian's signature.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from reporter import CommandError, InterpreterError, Reporter

PACKAGE = "python3.13"
SUITES = ("forky", "trixie")  # newest first; both hold the source of PACKAGE
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
NEEDS = ["gcc", "libc6-dev", "make", "pkg-config", "xz-utils"]
NEEDS += ["libbz2-dev", "libffi-dev", "liblzma-dev", "libreadline-dev"]
NEEDS += ["libsqlite3-dev", "libssl-dev", "uuid-dev", "zlib1g-dev"]


def install_needs(reporter: Reporter) -> None:
    """Install the Debian packages that the build needs and that are missing.

    Raises:
        InterpreterError: they are missing and we may not install them.
    """
    missing = missing_packages()
    if not missing:
        return
    advice = f"run 'apt-get install {' '.join(missing)}' as root, then try again"
    become_root = []
    if os.geteuid() != 0:
        if not shutil.which("sudo"):
            raise InterpreterError(f"Building CPython needs more packages: {advice}.")
        # Without a terminal sudo must fail at once, not ask for a password.
        become_root = ["sudo"] if sys.stderr.isatty() else ["sudo", "-n"]
    apt = [*become_root, "apt-get", "-y", "-o", "DPkg::Lock::Timeout=300"]
    install = [*apt, "install", "--no-install-recommends", *missing]
    with reporter.phase(f"Install {' '.join(missing)}"):
        try:
            reporter.run(install, stoppable=False)
        except CommandError:
            # Most often because the package lists are old or empty.
            try:
                reporter.run([*apt, "update"], stoppable=False)
                reporter.run(install, stoppable=False)
            except CommandError:
                raise InterpreterError(
                    "The packages that building CPython needs could not be installed "
                    f"(see {reporter.log_path}): {advice}."
                ) from None


def missing_packages() -> list[str]:
    """Return those NEEDS that dpkg does not know as installed."""
    if not shutil.which("dpkg-query"):
        return []  # not a Debian: configure itself will say what it misses
    asked = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *NEEDS],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = asked.stdout.splitlines()
    installed = {line.split()[0] for line in lines if line.endswith(" installed")}
    # pkgconf took over pkg-config's work in newer releases.
    if shutil.which("pkg-config"):
        installed.add("pkg-config")
    return [name for name in NEEDS if name not in installed]


def newest_tarball(cache: Path) -> Path | None:
    """Return the newest source that an earlier build left in the cache."""
    found = (cache / "source").glob(f"{PACKAGE}_*.orig.tar.*")
    return max(found, key=lambda path: version_key(tarball_version(path)), default=None)


def tarball_version(tarball: Path) -> str:
    """Return the version in a Debian source archive's name."""
    return tarball.name[len(PACKAGE) + 1 : tarball.name.index(".orig.")]


def version_key(version: str) -> list[int]:
    """Return what to sort version strings by."""
    return [int(number) for number in re.findall(r"\d+", version)]


def fetch_source(reporter: Reporter, cache: Path, work: Path) -> Path:
    """Download the source through apt, which checks Debian's signature.

    Raises:
        InterpreterError: this is no Debian, or none of its mirrors gave the source.
    """
    mirrors = debian_mirrors() if KEYRING.exists() else []
    if not mirrors:
        raise InterpreterError(
            "No free-threaded Python was found, and without Debian's apt sources and "
            "archive keyring none can be built here: put a python3.13t on PATH, or set "
            "FTBUS_PYTHON."
        )
    with reporter.phase(f"Fetch the source of {PACKAGE}"):
        for suite in SUITES:
            for mirror in mirrors:
                with contextlib.suppress(CommandError):
                    return fetch_from(reporter, mirror, suite, cache, work)
        raise InterpreterError(
            f"No free-threaded Python was found, and {mirrors[0]} did not give the "
            f"source of {PACKAGE} (see {reporter.log_path}): try again, put a "
            "python3.13t on PATH, or set FTBUS_PYTHON."
        )


def debian_mirrors() -> list[str]:
    """Return the mirrors that the user's own apt configuration names."""
    columns = "$(RELEASE) $(COMPONENT) $(REPO_URI)"
    try:
        listed = subprocess.run(
            ["apt-get", "indextargets", "--format", columns],
            capture_output=True,
            text=True,
            check=False,
        )
        system = Path("/etc/os-release").read_text(encoding="utf-8")
    except OSError:
        return []
    facts = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', system, re.MULTILINE))
    if facts.get("ID") != "debian":
        return []
    # Other vendors' archives use release names of their own.
    releases = {facts.get("VERSION_CODENAME"), "stable", "testing", "sid", *SUITES}
    rows = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    named = [
        uri for release, part, uri in rows if release in releases and part == "main"
    ]
    return list(dict.fromkeys(named))


def fetch_from(
    reporter: Reporter, mirror: str, suite: str, cache: Path, work: Path
) -> Path:
    """Fetch the source from one suite with an apt state of our own."""
    state = Path(tempfile.mkdtemp(dir=work))
    for folder in ("lists/partial", "cache/archives/partial", "parts", "source"):
        (state / folder).mkdir(parents=True)
    sources = state / "ftbus.sources"
    sources.write_text(
        f"Types: deb-src\nURIs: {mirror}\nSuites: {suite}\nComponents: main\n"
        f"Signed-By: {KEYRING}\n",
        encoding="utf-8",
    )
    settings = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": state / "parts",
        "Dir::State::Lists": state / "lists",
        "Dir::Cache": state / "cache",
        "Acquire::Languages": "none",
        "Acquire::Retries": 3,
        # Whatever the user's own settings allow:
        "Acquire::AllowInsecureRepositories": "false",
        "APT::Get::AllowUnauthenticated": "false",
    }
    if os.geteuid() == 0:
        # apt's own user could not enter a cache that lies in root's home.
        settings["APT::Sandbox::User"] = "root"
    apt = ["apt-get", *(f"-o{name}={value}" for name, value in settings.items())]
    reporter.run([*apt, "update"])
    reporter.run([*apt, "source", "--download-only", PACKAGE], state / "source")
    archives = sorted((state / "source").glob(f"{PACKAGE}_*.orig.tar.*[!c]"))
    if not archives:
        raise CommandError(f"{mirror} has no source of {PACKAGE} in {suite}.")
    kept = cache / "source" / archives[0].name
    kept.parent.mkdir(exist_ok=True)
    return archives[0].rename(kept)
