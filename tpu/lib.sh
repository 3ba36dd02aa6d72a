# shellcheck shell=bash
# What the launch scripts share: settings, accelerator facts, dry runs, errors.
# Sourced, never run; talks to Google Cloud through the gcloud command alone.
set -euo pipefail
# Without it $(...) goes on after an error.
shopt -s inherit_errexit

# The names that the scripts use are set here.
# shellcheck disable=SC2034
TPU_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck disable=SC2034
REPO=$(dirname "$TPU_DIR")
# Dry runs print here, also from inside $(...).
exec 3>&1

# Expected: what was wrong, and what to type next.
die() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

say() { printf '%s\n' "$1" >&2; }

((BASH_VERSINFO[0] >= 5)) || die "bash ${BASH_VERSION} is too old, 5 is \
needed. On a Mac: brew install bash"

# The comment at the top of the calling script is its help.
help_if_asked() {
  [[ ${1:-} == --help || ${1:-} == -h ]] || return 0
  awk 'NR > 1 && !/^#/ {exit} NR > 1 {sub(/^# ?/, ""); print}' "$0"
  exit 0
}

# --- Dry runs ---

dry_run() { [[ ${DRY_RUN:-0} != 0 ]]; }

# The words, quoted so that a shell reads them back as they are.
quote() {
  local words
  printf -v words '%q ' "$@"
  printf '%s\n' "${words% }"
}

# run COMMAND...: runs it; a dry run prints it instead.
run() { if dry_run; then quote "$@" >&3; else "$@"; fi; }

# query ANSWER COMMAND...: its output; a dry run prints the command and goes
# on as if the answer had been ANSWER.
query() {
  local answer=$1
  shift
  run "$@" || return
  if dry_run; then printf '%s\n' "$answer"; fi
}

# --- Settings ---

# Comments and defaults: env.example.
SETTINGS=(PROJECT ZONE NAME ACCELERATOR SLICES CAPACITY PROVISION BUCKET
  BUCKET_REGION NETWORK SUBNETWORK SERVICE_ACCOUNT VALID_UNTIL RUNTIME_VERSION
  MAX_RESTARTS POLL_SECONDS FLAGS_FILE CLUSTER IMAGE RESERVATION)

# Reads KEY=value lines; what the environment already says wins.
read_settings_file() {
  local file=$1 line number=0 key
  while IFS= read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    [[ ! $line =~ ^[[:space:]]*(#|$) ]] || continue
    [[ $line =~ ^([A-Z_]+)=([^[:space:]#]*)[[:space:]]*(#.*)?$ ]] \
      || die "$file:$number: expected KEY=value without blanks, got: $line"
    key=${BASH_REMATCH[1]}
    [[ " ${SETTINGS[*]} " == *" $key "* ]] \
      || die "$file:$number: unknown setting $key. Known: ${SETTINGS[*]}"
    [[ -n ${!key+set} ]] || printf -v "$key" %s "${BASH_REMATCH[2]}"
  done <"$file"
}

# Needed settings: by name. Sets the others to their defaults.
load_settings() {
  local key
  if [[ -n ${TPU_ENV:-} ]]; then
    [[ -f $TPU_ENV ]] || die "TPU_ENV=$TPU_ENV is not a file."
    read_settings_file "$TPU_ENV"
  elif [[ -f $TPU_DIR/env ]]; then
    read_settings_file "$TPU_DIR/env"
  fi
  for key in "${SETTINGS[@]}"; do
    [[ -n ${!key+set} ]] || printf -v "$key" %s ''
  done
  : "${SLICES:=1}" "${CAPACITY:=spot}" "${PROVISION:=queued}"
  : "${MAX_RESTARTS:=20}" "${POLL_SECONDS:=30}"
  BUCKET=${BUCKET%/}
  for key in "$@"; do
    [[ -n ${!key} ]] || die "$key is not set. Put $key=... into tpu/env (cp \
tpu/env.example tpu/env), or write it before the command: $key=... $0"
  done
  check_settings
  WHERE=(--project="$PROJECT" --zone="$ZONE")
}

# expect KEY PATTERN MEANING: a set value must match.
expect() {
  [[ -z ${!1} || ${!1} =~ ^($2)$ ]] || die "$1=${!1}: expected $3."
}

check_settings() {
  expect NAME '[a-z]([-a-z0-9]{0,38}[a-z0-9])?' \
    'at most 40 of a-z, 0-9 and -, a letter first'
  expect ZONE '[a-z]+-[a-z]+[0-9]+-[a-z]' 'a zone such as us-east5-b'
  expect SLICES '[1-9][0-9]*' 'a number of slices, 1 or more'
  expect CAPACITY 'spot|reserved|on-demand' 'spot, reserved or on-demand'
  expect PROVISION 'queued|direct' 'queued or direct'
  expect BUCKET 'gs://[^/]+(/.*)?' 'gs://bucket or gs://bucket/folder'
  expect MAX_RESTARTS '[0-9]+' 'a number'
  if [[ $PROVISION == direct ]] && ((SLICES > 1)); then
    die "PROVISION=direct makes one slice, not SLICES=$SLICES. Several come \
from a queued resource: PROVISION=queued"
  fi
}

# Sets the facts about $ACCELERATOR, from onerec_jax/accelerators.json.
# shellcheck disable=SC2034
GENERATION='' DEVICES='' HOSTS='' CHIPS_PER_HOST='' TOPOLOGY='' GCLOUD_TYPE=''
# shellcheck disable=SC2034
GKE_ACCELERATOR='' DEFAULT_RUNTIME_VERSION=''
load_accelerator() {
  local facts
  facts=$(python3 "$TPU_DIR/accelerator.py" "$ACCELERATOR") || exit 2
  eval "$facts"
}

# For what only TPU VMs have.
load_vm_accelerator() {
  load_accelerator
  [[ -n $GCLOUD_TYPE ]] || die "$ACCELERATOR is rented through GKE only: \
tpu/gke/jobset.sh or tpu/gke/xpk.sh"
  : "${RUNTIME_VERSION:=$DEFAULT_RUNTIME_VERSION}"
}

# Data and checkpoints beside the TPUs: elsewhere they are slow, and billed.
check_bucket_region() {
  local region=${ZONE%-*} name=${BUCKET#gs://} location
  [[ $BUCKET_REGION != any ]] || return 0
  name=gs://${name%%/*}
  location=$(query "$region" gcloud storage buckets describe "$name" \
    --project="$PROJECT" --format='value(location)') \
    || die "cannot read $name. Is the name right? To make it: gcloud storage \
buckets create $name --project=$PROJECT --location=$region"
  [[ ${location,,} == "$region" ]] || die "$name is in ${location,,}, the \
TPUs are in $region: traffic between them is slow and billed. Take a bucket \
in $region (gcloud storage buckets create gs://NEW --location=$region), or \
accept it: BUCKET_REGION=any"
}

# --- Slices ---

# Names of the nodes (slices), one a line.
node_names() {
  local index
  if ((SLICES == 1)); then
    # shellcheck disable=SC2153 # Set by load_settings.
    printf '%s\n' "$NAME"
  else
    for ((index = 0; index < SLICES; index++)); do
      printf '%s-%d\n' "$NAME" "$index"
    done
  fi
}

# each_node FUNCTION: FUNCTION NODE for all nodes at once; the largest status.
each_node() {
  local node pid pids=() status worst=0
  for node in $(node_names); do
    if dry_run; then
      "$1" "$node"
    else
      "$1" "$node" &
      pids+=($!)
    fi
  done
  for pid in "${pids[@]}"; do
    status=0
    wait "$pid" || status=$?
    ((status <= worst)) || worst=$status
  done
  return "$worst"
}

# request_slices FLAG...: asks for the slices; FLAGs go to gcloud.
request_slices() {
  local options=(--accelerator-type="$GCLOUD_TYPE")
  [[ $CAPACITY == on-demand ]] || options+=("--$CAPACITY")
  [[ -z $NETWORK ]] || options+=(--network="$NETWORK")
  [[ -z $SUBNETWORK ]] || options+=(--subnetwork="$SUBNETWORK")
  [[ -z $SERVICE_ACCOUNT ]] || options+=(--service-account="$SERVICE_ACCOUNT")
  if [[ $PROVISION == direct ]]; then
    run gcloud compute tpus tpu-vm create "$NAME" "${WHERE[@]}" \
      --version="$RUNTIME_VERSION" "${options[@]}" "$@"
    return
  fi
  [[ -z $VALID_UNTIL ]] || options+=(--valid-until-duration="$VALID_UNTIL")
  if ((SLICES == 1)); then
    options+=(--node-id="$NAME")
  else
    options+=(--node-count="$SLICES" --node-prefix="$NAME")
  fi
  run gcloud compute tpus queued-resources create "$NAME" "${WHERE[@]}" \
    --runtime-version="$RUNTIME_VERSION" "${options[@]}" "$@"
}

# One word: ACTIVE, FAILED, ... (queued), READY, PREEMPTED, ... (direct).
slice_state() {
  if [[ $PROVISION == direct ]]; then
    query READY gcloud compute tpus tpu-vm describe "$NAME" "${WHERE[@]}" \
      --format='value(state)'
  else
    query ACTIVE gcloud compute tpus queued-resources describe "$NAME" \
      "${WHERE[@]}" --format='value(state.state)'
  fi
}

# delete_unless_gone COMMAND...: 1 where there was nothing to delete.
delete_unless_gone() {
  local answer
  if dry_run; then
    run "$@"
  elif answer=$("$@" 2>&1); then
    say "$answer"
  else
    say "$answer"
    [[ $answer == *NOT_FOUND* || $answer == *'not found'* ]] || exit 1
    return 1
  fi
}

# delete_slices FLAG...: the queued resource and its nodes, or the nodes alone
# where there is no queued resource. Nothing there is no error.
delete_slices() {
  local node
  if delete_unless_gone gcloud compute tpus queued-resources delete "$NAME" \
    "${WHERE[@]}" --force --quiet "$@"; then
    if ! dry_run || [[ $PROVISION == queued ]]; then return 0; fi
  fi
  for node in $(node_names); do
    delete_unless_gone gcloud compute tpus tpu-vm delete "$node" \
      "${WHERE[@]}" --quiet "$@" || say "$node is not there (any more)."
  done
}

# --- Jobs ---

# The compiler's flags for this generation; what the environment has stays.
libtpu_init_args() {
  local file=${FLAGS_FILE:-$TPU_DIR/flags/$GENERATION.env} flags
  if [[ -n $FLAGS_FILE && ! -r $FLAGS_FILE ]]; then
    die "FLAGS_FILE=$FLAGS_FILE cannot be read. For no flags: \
FLAGS_FILE=/dev/null"
  fi
  # Generations without a file have no flags of their own.
  if [[ -r $file ]]; then
    # shellcheck source=/dev/null
    source "$file"
  fi
  flags=${LIBTPU_INIT_ARGS:-}
  printf '%s\n' "${flags# }"
}

# Folder of one submission: code, command, logs, status. Empty: no bucket.
job_folder() {
  [[ -n $BUCKET ]] || return 0
  printf '%s/jobs/%s/%s\n' "$BUCKET" "$NAME" \
    "${SUBMISSION:-$(date -u +%Y%m%d-%H%M%S)}"
}

# job_command JOB WORD...: what a worker runs, as one line of shell.
job_command() {
  local job=$1 flags
  shift
  flags=$(libtpu_init_args)
  quote env JOB="$job" MAX_RESTARTS="$MAX_RESTARTS" \
    LIBTPU_INIT_ARGS="$flags" bash tpu/supervise.sh "$@"
}
