// A server with better-sse at the port given: it broadcasts numbers, and closes
// all connections when it is asked for /cut.
import { createServer } from "node:http"
import { createChannel, createSession } from "better-sse"

const channel = createChannel()
const server = createServer(async (req, res) => {
	if (req.url === "/cut") {
		res.end()
		server.closeAllConnections()
		return
	}
	channel.register(await createSession(req, res, { serializer: data => data }))
})
server.listen(Number(process.argv[2]), "127.0.0.1")

let n = 0
setInterval(() => channel.broadcast(String(++n), "message", { eventId: String(n) }), 5)
