#!/bin/sh
# Builds the engine, then serves. Without an engine nothing is served, and the exit code is that of the build.
set -eu
# The first process of a container does not end on SIGTERM by itself, and a build would go on for minutes.
build-engine &
build=$!
trap 'kill -TERM "$build"' TERM INT
wait "$build"
trap - TERM INT
exec surgseg serve "$@"
