// Prints what the npm package eventsource-parser reads, one event a line:
//
//	node eventsource-parser.mjs http://localhost:8080/events
//
// The package parses and no more; this program fetches and reconnects.
import {createParser} from "eventsource-parser"

let id = "", retry = 3000
const parser = createParser({
	onEvent(e) {
		id = e.id ?? id
		console.log(JSON.stringify({id, type: e.event || "message", data: e.data}))
	},
	onRetry(ms) {
		retry = ms
	},
})

for (;;) {
	try {
		const headers = {Accept: "text/event-stream"}
		if (id != "") {
			headers["Last-Event-ID"] = id
		}
		const response = await fetch(process.argv[2], {headers})
		if (!response.ok) {
			throw new Error(response.statusText)
		}
		for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
			parser.feed(text)
		}
	} catch (err) {
		console.error(String(err.cause ?? err))
	}
	parser.reset()
	await new Promise(resolve => setTimeout(resolve, retry))
}
