#!/usr/bin/env bash
# A Ray cluster of several nodes on this machine, to try what needs more than one node.
#   cluster/local.sh start    prints the address and what to export
#   cluster/local.sh stop     ends these nodes and no other Ray
# Its addresses are loopback ones and every connection needs a token made here; Ray binds its gRPC ports to all interfaces,
# so keep the token to yourself.
# WORKERS is the number of nodes beside the head (1), CPUS the processors of each node, PORT the head's first port (the next ones are
# taken too), RAY the `ray` command, STATE the folder of the token and the logs.
set -euo pipefail

ray=${RAY:-ray}
port=${PORT:-6390}
workers=${WORKERS:-1}
cpus=${CPUS:-$(( ($(nproc) + workers) / (workers + 1) ))}
head=127.0.0.2
state=${STATE:-${XDG_RUNTIME_DIR:-/tmp}/genopt-cluster-$(id -u)}

# node NAME ADDRESS OPTION...: starts a node in a process group of its own, so that `stop` reaches all of its processes.
# Ray replaces 127.0.0.1 by an address that others can reach; it leaves other loopback addresses alone.
node() {
    local name=$1 address=$2
    shift 2
    setsid "$ray" start --block --node-ip-address="$address" --num-cpus="$cpus" --object-store-memory=200000000 \
        --disable-usage-stats "$@" </dev/null >"$state/$name.log" 2>&1 &
    echo $! >"$state/$name.pid"
}

# nodes NUMBER: waits until that many are alive, which also takes the dashboard.
nodes() {
    for _ in $(seq 60); do
        if (: <"/dev/tcp/127.0.0.1/$((port + 1))") 2>/dev/null && [ "$("$ray" list nodes --address "http://127.0.0.1:$((port + 1))" --format json 2>/dev/null | grep -o '"state": "ALIVE"' | wc -l)" -ge "$1" ]; then
            return 0
        fi
        sleep 0.5
    done
    echo "Node $1 did not come up; see the logs in $state, then run: $0 stop" >&2
    exit 1
}

start() {
    if compgen -G "$state/*.pid" >/dev/null; then
        echo "It runs already; end it first: $0 stop" >&2
        exit 1
    fi
    mkdir -p "$state"
    chmod 700 "$state"
    (umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$state/token")
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$state/token
    export RAY_worker_niceness=0 RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 # Ray's own niceness of 15 would disturb measurements
    export RAY_JOB_STOP_WAIT_TIME_S=60                           # a job that is stopped writes its report
    node head "$head" --head --port="$port" --include-dashboard=true --dashboard-host=127.0.0.1 --dashboard-port=$((port + 1)) \
        --ray-client-server-port=$((port + 2)) --dashboard-agent-listen-port=$((port + 3))
    # A node that comes too early for its head gives up.
    local number
    for _ in $(seq 300); do (: <"/dev/tcp/$head/$port") 2>/dev/null && break || sleep 0.1; done
    for number in $(seq "$workers"); do
        node "worker-$number" "127.0.0.$((number + 2))" --address="$head:$port" --dashboard-agent-listen-port=$((port + 3 + number))
    done
    nodes $((workers + 1))
    cat <<TEXT
$((workers + 1)) node(s) with $cpus processor(s) each run at $head:$port. In the shell that uses them:
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$state/token
  export RAY_ADDRESS=$head:$port                  # for genopt
  export RAY_API_SERVER_ADDRESS=http://127.0.0.1:$((port + 1))   # for \`genopt submit\`
End them with: $0 stop
TEXT
}

# Ends a process group: politely first, as Ray then cleans up after itself; it would take ten seconds to end by itself.
end() {
    kill -TERM -- "-$1" 2>/dev/null || return 0
    for _ in $(seq 15); do
        kill -0 -- "-$1" 2>/dev/null || return 0
        sleep 0.2
    done
    kill -KILL -- "-$1" 2>/dev/null || true
}

stop() {
    local file
    for file in "$state"/worker-*.pid "$state"/head.pid; do
        [ -f "$file" ] && end "$(cat "$file")" &
    done
    wait
    rm -rf "$state"
}

case ${1:-} in
start) start ;;
stop) stop ;;
*)
    sed -n '2,8s/^# //p' "$0"
    exit 2
    ;;
esac
