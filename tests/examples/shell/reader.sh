#!/usr/bin/env bash
# Keeps the rows of a stream in a journal, exactly once: reader.sh HOST PORT STREAM JOURNAL
#
# A line of the journal is a token and the rows that have it. It is written whole; what a kill has left of
# one is cut off, and comes again. (By hand one types into nc; but nc does not tell a script that the
# other side has gone, so this is bash's own socket.)
set -u
trap '' PIPE
host=$1 port=$2 stream=$3 journal=$4
touch "$journal"
while true; do
  # What the last kill left of a line goes.
  if [ -s "$journal" ] && [ "$(tail -c 1 "$journal" | wc -l)" -eq 0 ]; then
    sed -i '$d' "$journal"
  fi
  at=$(tail -n 1 "$journal" | cut -d ' ' -f 1)
  if ! exec 3<>"/dev/tcp/$host/$port"; then
    sleep 0.2
    continue
  fi 2>/dev/null
  printf 'NAME reader.sh\nREPLICATE %s master %s\n' "$stream" "${at:-0}" >&3
  rows=
  # A server that has nothing else to say says PING every 10 seconds.
  while read -t 25 -r word name instance token row <&3; do
    case $word in
      ERROR) echo "$name $instance $token $row" >&2 ;;
      POSITION) rows= ;;
      RDATA)
        rows="$rows $row"
        if [ "$token" != batch ]; then
          if [ "$token" -gt "${at:-0}" ]; then
            printf '%s%s\n' "$token" "$rows" >>"$journal"
            at=$token
          fi
          rows=
        fi ;;
    esac
  done
  exec 3>&-
  sleep 0.2
done
