#!/usr/bin/env bash
# Publishes rows, one a line of stdin, exactly once: writer.sh HOST PORT STREAM PRODUCER < ROWS
#
# The server knows how many it has taken: whoever was cut off begins again with the same words.
set -u
trap '' PIPE
host=$1 port=$2 stream=$3 producer=$4
mapfile -t rows
epoch=
while true; do
  if ! exec 3<>"/dev/tcp/$host/$port"; then
    sleep 0.2
    continue
  fi 2>/dev/null
  printf 'PRODUCER %s %s\n' "$producer" "$epoch" >&3
  while read -t 25 -r word name said taken rest <&3; do
    case $word in
      PRODUCER) epoch=$said number=$taken ;;  # the last number that was taken
      PUBLISHED) number=$((number + 1)) ;;
      REFUSED)
        echo "$word $name $said $taken $rest" >&2
        exit 1 ;;
      *) continue ;;
    esac
    if [ "$number" -ge "${#rows[@]}" ]; then
      echo "${#rows[@]} rows are there"
      exit 0
    fi
    printf 'PUBLISH %s #%s %s\n' "$stream" "$((number + 1))" "${rows[$number]}" >&3
  done
  exec 3>&-
  sleep 0.2
done
