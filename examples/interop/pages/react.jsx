import { StrictMode, useEffect, useReducer, useState } from "react"
import { createRoot } from "react-dom/client"
import { follow } from "../../page/follow.js"

// useEvents returns the events of a stream so far, and whether it is connected. After
// a gap it begins anew: load the state again there, or set CatchUp.
// The server: ev, err := sse.JSON(item{n, text}); broker.Publish(ev).
function useEvents(url) {
	const [events, add] = useReducer((events, e) => e.type === "gap" ? [] : [...events, e], [])
	const [connected, setConnected] = useState(false)
	useEffect(() => {
		const stream = follow(url, {
			on: { message: add, gap: add },
			open: () => setConnected(true), away: () => setConnected(false),
		})
		return stream.close
	}, [url])
	return { events, connected }
}

function List() {
	const { events, connected } = useEvents("/events")
	return <ul id="list" className={connected ? "connected" : "away"}>
		{events.map(e => {
			const { n, text } = JSON.parse(e.data)
			return <li key={e.lastEventId}><b>{n}</b><pre>{text}</pre></li>
		})}
	</ul>
}

createRoot(document.getElementById("root")).render(<StrictMode><List /></StrictMode>)
