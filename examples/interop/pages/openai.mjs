// Asks a server in the style of language model APIs, and prints the answer.
import OpenAI from "openai"

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 })
const stream = await client.chat.completions.create({
	model: "any",
	messages: [{ role: "user", content: process.argv[3] }],
	stream: true,
})
for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta?.content ?? "")
