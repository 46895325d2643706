#!/bin/sh
# A service that knows nothing of Keyturn: it reads its login from the environment.
#
#   keyturn exec --env PGUSER=dev/orders/db:username --env PGPASSWORD=dev/orders/db:password \
#     --label cohort=canary -- examples/exec/service.sh
#
# After a rotation keyturn ends it by SIGTERM and starts it again with the new login.
trap 'exit 0' TERM
export PGHOST="${PGHOST:-127.0.0.1}" PGDATABASE="${PGDATABASE:-orders}"
while :; do
	psql -qtAc "SELECT 'logged in as ' || session_user" || exit 1
	sleep 1 &
	wait $!
done
