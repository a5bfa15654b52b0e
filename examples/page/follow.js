// follow reads an event stream and does not give up: it goes on after the last event
// also where an EventSource stays closed, as after a proxy's 502. Copy this file.
//
//	import { follow } from "./follow.js" // in a <script type="module">
//	const stream = follow("/events", {
//		on: { // a function for each type of event, which gets {type, data, lastEventId}
//			message: e => show(e.data),   // or JSON.parse(e.data), for what sse.JSON made
//			gap: () => location.reload(), // events were missed, or may have been before the first
//			end: () => tell("complete"),  // the stream is finished for good
//		},
//		open: () => tell("connected"),
//		away: () => tell("reconnecting"),
//		refused: status => tell("signed out"), // closed, since the answer was 401, 403 or 410
//		lastEventId: "7f3-12",                 // where to begin; without it, with the next event
//		withCredentials: true,                 // send cookies to another origin
//		shared: true,                          // one connection for all tabs; needs HTTPS or localhost
//		snapshot: true,                        // with shared, where newcomers are sent the state first
//	})
//	stream.close() // stream.lastEventId is that of the last event
export function follow(url, options = {}) {
	const { on = {}, open, away, refused, lastEventId = "", withCredentials = false, shared, snapshot } = options
	const address = new URL(url, location).href
	const types = [...new Set(["message", "gap", "end", ...Object.keys(on)])]
	let stop, state
	const stream = { lastEventId, closed: false, close: () => { stream.closed = true; stop?.() } }
	const hear = ({ type, data, lastEventId }) => {
		if (stream.closed) return
		if ((stream.lastEventId = lastEventId) === "sse-end") stream.close()
		try { on[type]?.({ type, data, lastEventId }) } catch (err) { reportError(err) }
	}
	const tell = (now, status) => {
		if (stream.closed || now === state) return
		state = now
		if (now === "refused") stream.close()
		;({ open, away, refused })[now]?.(status)
	}
	const start = (hear, tell) => connect(address, types, withCredentials, stream.lastEventId, hear, tell)
	if (stream.lastEventId === "sse-end") queueMicrotask(() => hear({ type: "end", data: "", lastEventId: "sse-end" }))
	else if (!shared || !navigator.locks) stop = start(hear, tell)
	else stop = share(["follow", address, ...types.sort()].join(" "), stream, snapshot, start, hear, tell)
	return stream
}

// connect keeps an EventSource going, and returns a function that ends it.
function connect(address, types, withCredentials, lastEventId, hear, tell) {
	let source, timer, opened, stopped = false, wait = 1000
	const url = new URL(address)
	const own = f => e => e instanceof MessageEvent || f() // not an event "open" or "error" of the stream
	const begin = () => {
		if (lastEventId) url.searchParams.set("lastEventId", lastEventId)
		source = new EventSource(url, { withCredentials })
		source.onopen = own(() => {
			if (opened && opened !== source && !lastEventId) hear({ type: "gap", data: "", lastEventId })
			opened = source
			wait = 1000
			tell("open")
		})
		source.onerror = own(() => {
			tell("away")
			if (source.readyState !== EventSource.CLOSED) return // the browser tries again by itself
			timer = setTimeout(again, wait * (1 + Math.random())) // not all pages at once
			wait = Math.min(2 * wait, 16_000)
		})
		for (const type of types) source.addEventListener(type, e => {
			if (!(e instanceof MessageEvent)) return
			lastEventId = e.lastEventId
			hear({ type, data: e.data, lastEventId })
		})
	}
	// An EventSource does not say what it was answered, so ask.
	const again = async () => {
		const credentials = withCredentials ? "include" : "same-origin"
		const { status } = await fetch(url, { method: "HEAD", credentials, cache: "no-store" }).catch(() => ({}))
		if (stopped) return
		if (status === 204) hear({ type: "end", data: "", lastEventId: "sse-end" })
		else if ([401, 403, 410].includes(status)) tell("refused", status)
		else begin()
	}
	begin()
	return () => { stopped = true; clearTimeout(timer); source.close() }
}

// share has the tab that holds a lock connect, number the events and pass them on.
// All tabs keep the last ones: when that tab closes, the next one goes on from there.
function share(name, stream, snapshot, start, hear, tell) {
	const channel = new BroadcastChannel(name), me = Math.random(), closing = new AbortController()
	const signal = closing.signal, next = () => (kept.at(-1)?.n ?? 0) + 1
	let kept = [], answered = false, live = false // answered: kept is the leading tab's; live: the page has had it all
	let leading = false, ready = true, queued, state, release, stopCatchUp
	const keep = e => kept = [...kept.slice(-500), e]
	const lead = async () => {
		if (live) await new Promise(done => setTimeout(done, 100)) // for the last words of the tab before
		if (stream.closed) return
		leading = live = true
		stopCatchUp?.()
		if (!kept.length) keep({ n: 0, lastEventId: stream.lastEventId })
		await new Promise(done => {
			const stop = start(e => {
				keep(e = { ...e, n: next() })
				channel.postMessage({ event: e })
				hear(e)
			}, (...now) => {
				channel.postMessage({ state: state = now })
				tell(...now)
			})
			release = () => done(stop())
		})
	}
	// elect makes this tab lead if none does, and otherwise has it join.
	const elect = () => navigator.locks.request(name, { ifAvailable: true }, lock => {
		if (lock) return lead()
		if (!answered) channel.postMessage({ ask: me })
		setTimeout(() => live || stream.closed || elect(), 1000)
	})
	// meet goes over to the shared events if they hold the last one that this page has seen.
	const meet = () => {
		const newcomer = !stream.lastEventId && !snapshot
		const at = newcomer ? kept.length - 1 : ready && stream.lastEventId
			? kept.findLastIndex(e => e.lastEventId === stream.lastEventId) : -1
		if (live || at < 0 && !newcomer) return
		live = true
		stopCatchUp?.()
		kept.slice(at + 1).forEach(hear)
		queued ||= navigator.locks.request(name, { signal }, lead).catch(() => {})
	}
	// catchUp reads a stream of its own up to where the shared one is, one tab at a time.
	const catchUp = () => navigator.locks.request(name + " catching up", { signal }, () => new Promise(done => {
		if (live || stream.closed) return done()
		ready = false // until it had time for all that a newcomer is sent
		const stop = start(e => { hear(e); meet() }, now => now === "open" && setTimeout(() => { ready = true; meet() }, 250))
		stopCatchUp = () => done(stop())
	})).catch(() => {})

	channel.onmessage = ({ data: { ask, to, event, events, state: now } }) => {
		if (leading) return ask && channel.postMessage({ to: ask, events: kept, state })
		if (to === me && !answered) {
			answered = true
			kept = events
			meet()
			live || catchUp()
		}
		if (now && answered && (to ?? me) === me) tell(...now)
		if (!event || !answered || event.n < next()) return
		if (event.n > next()) { // some were lost as another tab took over: join again
			live = answered = false
			return elect()
		}
		keep(event)
		live ? hear(event) : meet()
	}
	elect()
	return () => {
		closing.abort()
		stopCatchUp?.()
		release?.()
		channel.close()
	}
}
