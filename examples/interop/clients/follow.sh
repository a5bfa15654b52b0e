#!/bin/bash
# Follows a stream with curl, and reconnects by itself:
#
#	bash follow.sh http://localhost:8080/events
#
# prints the ID and the data of each event.
url=$1 id='' retry=3000
while true; do
	next=$id data=''
	while IFS= read -r line; do
		case $line in
		'id: '*) next=${line#id: } ;;
		'retry: '*) retry=${line#retry: } ;;
		'data: '*) data+=${line#data: }$'\n' ;;
		'') # only now the event is complete
			id=$next
			[[ $data ]] && printf '%s\t%s' "$id" "$data"
			data=''
			;;
		esac
	done < <(curl -sN -H 'Accept: text/event-stream' ${id:+-H "Last-Event-ID: $id"} "$url")
	sleep "$((retry / 1000)).$(printf %03d $((retry % 1000)))"
done
