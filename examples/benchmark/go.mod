module github.com/seed22e817d0/sse/examples/benchmark

go 1.26

require (
	github.com/donovanhide/eventsource v0.0.0-20210830082556-c59027999da0
	github.com/launchdarkly/eventsource v1.11.0
	github.com/r3labs/sse/v2 v2.10.0
	github.com/seed22e817d0/sse v0.0.0
	github.com/tmaxmax/go-sse v0.12.0
	golang.org/x/net v0.57.0
	golang.org/x/sys v0.47.0
)

require (
	golang.org/x/text v0.40.0 // indirect
	gopkg.in/cenkalti/backoff.v1 v1.1.0 // indirect
)

replace github.com/seed22e817d0/sse => ../..
