#!/bin/sh
# Runs the tests in the virtual machine, from the disk at /podmotion.
set -eu
exec 2>&1

cache=$(cat /podmotion/cache-path)
mkdir -p "$(dirname "$cache")"
ln -sT /podmotion/cache "$cache"

export PODMOTION_CACHE="$cache"
export PODMOTION_BIN=/podmotion/bin
export PODMOTION_TEST_CGROUP_DRIVER=systemd
exec /podmotion/suite
