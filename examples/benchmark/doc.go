// Package benchmark compares what Server-Sent Events cost, for the same work,
// with this library, with others, and with the pattern of the tutorials.
// It holds nothing but benchmarks:
//
//	for i in 1 2 3; do go test -timeout 1h -run '^$' -bench .; done | tee bench.out
//	go run ./table bench.out   # the comparison, in Markdown
//	go run ./many              # this library with very many clients
//
// README.md tells what the figures mean.
package benchmark
