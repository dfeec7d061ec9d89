#!/bin/sh
# Prometheus, and Grafana if it is there, against a running cluster, until Ctrl-C:
#
#     sh start.sh [FOLDER]        data and rendered configuration; else ./monitoring-data
#
# Needs prometheus on PATH; shows dashboards if grafana (or grafana-server) is too. Both listen on loopback.
# Settings, as environment variables:
#   XGEN_RAY_URL        where the management API is         http://127.0.0.1:8000
#   XGEN_RAY_KEY_FILE   a file with an API key alone, if the cluster asks for keys
#   PROMETHEUS_PORT     9090
#   SCRAPE_INTERVAL     10s; Ray's agents have new figures every RAY_metrics_report_interval_ms, 10000
#   GRAFANA_PORT        3000
#   GRAFANA_HOME        Grafana's folder, if it is not where its package puts it: /usr/share/grafana
#   RAY_TEMP_DIR        where the head keeps its sessions, with Ray's own dashboards: /tmp/ray
set -eu

here=$(cd "$(dirname "$0")" && pwd)
data=${1:-monitoring-data}
url=${XGEN_RAY_URL:-http://127.0.0.1:8000}
port=${PROMETHEUS_PORT:-9090}
mkdir -p "$data/prometheus" "$data/grafana" "$data/ray-dashboards"
data=$(cd "$data" && pwd)

command -v prometheus >/dev/null || {
    echo "prometheus is not on PATH: install it (Debian: apt-get install prometheus)" >&2
    exit 1
}
key=
if [ -n "${XGEN_RAY_KEY_FILE:-}" ]; then
    key="authorization: {credentials_file: $(realpath "$XGEN_RAY_KEY_FILE")}"
fi
# The key stays in its file: Prometheus reads it there.
sed -e "s|CONFIG_DIR|$here|" -e "s|XGEN_RAY_URL|$url|" -e "s|# AUTHORIZATION|$key|" \
    -e "s|_interval: 10s|_interval: ${SCRAPE_INTERVAL:-10s}|" \
    "$here/prometheus.yml" >"$data/prometheus.yml"

pids=
stop() {
    # shellcheck disable=SC2086  # several
    [ -z "$pids" ] || kill $pids 2>/dev/null || true
    wait
}
trap stop EXIT
trap 'exit 0' INT TERM

prometheus --config.file="$data/prometheus.yml" --storage.tsdb.path="$data/prometheus" \
    --web.listen-address="127.0.0.1:$port" --log.level=warn &
pids=$!
echo "Prometheus at http://127.0.0.1:$port"

grafana=$(command -v grafana || command -v grafana-server || true)
if [ -n "$grafana" ]; then
    ray=${RAY_TEMP_DIR:-/tmp/ray}/session_latest/metrics/grafana/dashboards
    [ -d "$ray" ] || ray=$data/ray-dashboards
    export PROMETHEUS_URL="http://127.0.0.1:$port" XGEN_RAY_DASHBOARDS="$here/grafana/dashboards"
    export RAY_DASHBOARDS="$ray" GF_PATHS_PROVISIONING="$here/grafana/provisioning"
    export GF_PATHS_DATA="$data/grafana" GF_SERVER_HTTP_ADDR=127.0.0.1 GF_SERVER_HTTP_PORT="${GRAFANA_PORT:-3000}"
    export GF_ANALYTICS_REPORTING_ENABLED=false GF_ANALYTICS_CHECK_FOR_UPDATES=false
    # Ray's dashboard shows panels in frames, to a browser that has not signed in. On loopback, as above, that
    # lets in nobody who is not on this machine.
    export GF_SECURITY_ALLOW_EMBEDDING=true GF_AUTH_ANONYMOUS_ENABLED=true GF_AUTH_ANONYMOUS_ORG_ROLE=Viewer
    server=
    [ "$(basename "$grafana")" = grafana ] && server=server
    # shellcheck disable=SC2086  # none, or one word
    "$grafana" $server --homepath "${GRAFANA_HOME:-/usr/share/grafana}" &
    pids="$pids $!"
    echo "Grafana at http://127.0.0.1:$GF_SERVER_HTTP_PORT (dashboards in the folder xgen-ray)"
else
    echo "grafana is not on PATH: no dashboards; any Grafana can import $here/grafana/dashboards/*.json"
fi
# The first that ends ends all.
while :; do
    for pid in $pids; do
        kill -0 "$pid" 2>/dev/null || {
            wait "$pid"
            exit
        }
    done
    sleep 1 &
    wait "$!"
done
