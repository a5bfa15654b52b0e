// Prints what the npm package eventsource dispatches, one event a line:
//
//	node eventsource.mjs http://localhost:8080/events message update
//
// The types come after the address.
import {EventSource} from "eventsource"

const [url, ...types] = process.argv.slice(2)
const source = new EventSource(url)
for (const type of types) {
	source.addEventListener(type, e => console.log(JSON.stringify({id: e.lastEventId, type: e.type, data: e.data})))
}
