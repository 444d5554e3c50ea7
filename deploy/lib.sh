# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# What deploy/quickstart, tests/run and the benches share: where the project is, what Debian
# packages which purpose needs, and how to build.  To be sourced by bash under `set -euo pipefail`.
#
# The lists below are the one place that names packages.  "a|b": any of them will do, the first is
# what gets installed.  They must be complete for a minbase Debian 12.

cairn_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

packages_build=(
    cmake ninja-build gcc libc6-dev 'pkg-config|pkgconf'
    zlib1g-dev libzstd-dev libjansson-dev libssl-dev libxxhash-dev libmicrohttpd-dev libgnutls28-dev
    'libcurl4-openssl-dev|libcurl4-gnutls-dev|libcurl4-nss-dev'
    libhiredis-dev nbdkit nbdkit-plugin-dev libcmocka-dev
)
packages_pack=(dpkg-dev file gzip xz-utils)
packages_tour=(qemu-utils nbdkit e2fsprogs)
packages_test=(
    python3 qemu-utils qemu-block-extra qemu-system-x86 nbdkit libnbd-bin fio skopeo curl
    e2fsprogs busybox-static strace redis-server haproxy rsync openssl lintian systemd
    prometheus
)
# What the deployment tests want besides: a Docker engine, and a Debian to start from.  Where they
# cannot be had those tests are skipped.
packages_deploy=('docker.io|docker-ce' docker-compose debootstrap)
packages_bench=(python3 qemu-utils nbdkit libnbd-bin fio time wrk 'nginx-light|nginx-core|nginx-full|nginx')

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# missing_packages NAME…: one line for each that is not installed.
missing_packages() {
    local installed name alternative
    installed=$(dpkg-query -W -f='${db:Status-Status} ${Package}\n' 2>/dev/null |
        sed -n 's/^installed //p')
    for name; do
        for alternative in ${name//|/ }; do
            grep -qxF -- "$alternative" <<<"$installed" && continue 2
        done
        echo "${name%%|*}"
    done | sort -u
}

# need_packages LOG NAME…: install what is missing, as root and without a question; else say what.
need_packages() {
    local log=$1 missing
    shift
    command -v dpkg-query >/dev/null || die "this needs Debian 12 or a system like it: no dpkg-query"
    mapfile -t missing < <(missing_packages "$@")
    ((${#missing[@]})) || return 0
    ((EUID == 0)) || die "packages are missing; as root: apt-get install --no-install-recommends ${missing[*]}"
    if ! run_step "$log" apt_install "${missing[@]}"; then
        tail -n 20 "$log" >&2
        die "cannot install ${missing[*]} (see above)"
    fi
}

# For run_step only: it ends by becoming apt-get, so that a signal reaches that.
apt_install() {
    local apt=(apt-get -q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
    export DEBIAN_FRONTEND=noninteractive
    # Services that packages bring along stay off: what is needed of them is started by hand.
    export RUNLEVEL=1
    "${apt[@]}" update || echo "apt-get update failed; going on with the lists there are"
    exec "${apt[@]}" install --no-install-recommends "$@"
}

# A step that can take long runs in the background, so that a signal to this shell ends it too.
step_pid=
run_step() {
    local log=$1 code=0
    shift
    "$@" >"$log" 2>&1 </dev/null &
    step_pid=$!
    wait "$step_pid" || code=$?
    step_pid=
    return "$code"
}
end_step() {
    [[ -z $step_pid ]] || { kill "$step_pid" && wait "$step_pid"; } 2>/dev/null || true
}

# need_kernel LOG: Debian's cloud kernel for the guests that tests boot, unpacked in .cache/kernel;
# not installed, for no boot loader is to hear of it.
need_kernel() {
    local log=$1 folder=$cairn_root/.cache/kernel
    [[ ! -f $folder/vmlinuz && $(dpkg --print-architecture) == amd64 ]] || return 0
    if ! run_step "$log" fetch_kernel "$folder"; then
        tail -n 20 "$log" >&2
        die "cannot fetch the package linux-image-cloud-amd64 (see above)"
    fi
}

# Where this is called `set -e` counts for nothing: hence && throughout.
fetch_kernel() {
    local folder=$1 package
    package=$(kernel_package)
    if [[ -z $package ]] && ((EUID == 0)); then
        apt-get -q -o Acquire::Retries=3 update
        package=$(kernel_package)
    fi
    rm -rf "$folder" "$folder.new" &&
        mkdir -p "$folder.new" &&
        cd "$folder.new" &&
        apt-get -q -o Acquire::Retries=3 download "$package" &&
        dpkg-deb -x ./*.deb unpacked &&
        mv unpacked/boot/vmlinuz-* vmlinuz &&
        mv unpacked/lib/modules modules &&
        rm -rf unpacked ./*.deb &&
        mv "$folder.new" "$folder"
}

kernel_package() {
    apt-cache depends linux-image-cloud-amd64 2>/dev/null |
        sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -n 1
}

# want_deploy LOG: packages_deploy, and in .cache/base.tar the Debian that images and test systems are
# made from.  Never fails: says what there is not.
want_deploy() {
    local log=$1 missing
    ((EUID == 0)) || return 0
    mapfile -t missing < <(missing_packages "${packages_deploy[@]}")
    if ((${#missing[@]})) && ! run_step "$log" apt_install "${missing[@]}"; then
        echo "cannot install ${missing[*]}: $(tail -n 1 "$log")"
    elif [[ ! -f $cairn_root/.cache/base.tar ]] && ! run_step "$log" make_base "$cairn_root/.cache"; then
        echo "cannot make a base system: $(tail -n 1 "$log")"
    fi
}

# A minimal Debian 12 without what the "slim" images leave out, too.
make_base() {
    local cache=$1 folder
    mkdir -p "$cache"
    folder=$(mktemp -d "$cache/base.XXXXXX")
    chmod 755 "$folder"
    if debootstrap --variant=minbase bookworm "$folder" &&
        find "$folder/usr/share/doc" -type f ! -name copyright -delete &&
        rm -rf "$folder"/usr/share/{man,info,locale}/* "$folder"/var/{cache/apt,lib/apt/lists,log}/* &&
        tar -C "$folder" -cf "$folder.tar" --exclude=./dev --exclude=./proc --exclude=./sys .; then
        mv "$folder.tar" "$cache/base.tar"
        rm -rf "$folder"
    else
        rm -rf "$folder" "$folder.tar"
        return 1
    fi
}

# build_cairn PRESET LOG [TARGET…]
build_cairn() {
    local preset=$1 log=$2
    shift 2
    if ! run_step "$log" cmake -S "$cairn_root" --preset "$preset" ||
        ! run_step "$log" ninja -C "$(build_folder "$preset")" "$@"; then
        tail -n 40 "$log" >&2
        die "the build of preset $preset failed (see above)"
    fi
}

# Where a preset's binaries are.
build_folder() {
    case $1 in
        dev) echo "$cairn_root/build" ;;
        *) echo "$cairn_root/build-$1" ;;
    esac
}
