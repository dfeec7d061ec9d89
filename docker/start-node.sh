#!/bin/sh
# The entry point of every image. What the machine has is found out and told to Ray by `xgen-ray node`.
#
#     head [OPTIONS]                a head, at the container's own address
#     worker HOST:PORT [OPTIONS]    a node that joins this head
#     COMMAND ...                   anything else is run as it is: xgen-ray doctor, xgen-ray up, sh
#
# OPTIONS are those of `xgen-ray node`; one that is given again replaces ours. The cluster's token is in
# RAY_AUTH_TOKEN, or in the file that RAY_AUTH_TOKEN_PATH names; else in ~/.ray/auth_token, which a head
# makes, on the volume that keeps /var/lib/xgen-ray.
set -eu

# Ray opens a connection to every worker of the cluster, HAProxy one to every client.
# shellcheck disable=SC3045  # Debian's and Ubuntu's sh has -S
ulimit -S -n 65536 2>/dev/null || true

case "${1:-}" in
head)
    shift
    address=$(hostname -I)
    exec xgen-ray node --head --block --node-ip-address "${address%% *}" "$@"
    ;;
worker)
    shift
    case "${1:-}" in
    "" | -*)
        echo "start-node: worker HOST:PORT [OPTIONS]: give the head's address, for example 10.0.0.1:6379" >&2
        exit 2
        ;;
    esac
    address=$1
    shift
    exec xgen-ray node --block --address "$address" "$@"
    ;;
"" | -*)
    echo "start-node: give head [OPTIONS], worker HOST:PORT [OPTIONS], or a command to run" >&2
    exit 2
    ;;
*)
    exec "$@"
    ;;
esac
