// Many tries the library with as many clients as the machine can take: it
// connects them, leaves them idle, sends to all of them, shuts down, and has all
// of them come back to a new server with the ID of their last event.
//
//	go run ./many                                  # everything, about five minutes
//	go run ./many -run tcp/detach -clients 1000    # one part of it, smaller
//	curl -N 127.0.0.1:8080/events                  # a look at it, with -addr 127.0.0.1:8080 -idle 1h
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/seed22e817d0/sse/examples/benchmark/internal/load"
	"github.com/seed22e817d0/sse/examples/benchmark/internal/meter"
	"github.com/seed22e817d0/sse/examples/benchmark/internal/report"
)

func main() {
	load.Main() // in the process of the clients
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "many:", err)
		os.Exit(1)
	}
}

func run() error {
	c := config{}
	names := flag.String("run", strings.Join(scenarios, ","), "what to try: a network and a way to serve, several with commas")
	flag.IntVar(&c.Clients, "clients", 0, "number of clients (0: over tcp as many as the limit on open files allows, otherwise 100,000)")
	flag.IntVar(&c.Streams, "streams", 100, "streams of each HTTP/2 connection")
	flag.DurationVar(&c.KeepAlive, "keepalive", 15*time.Second, "time between two keep-alives")
	flag.DurationVar(&c.Idle, "idle", 30*time.Second, "time for which the clients are left idle")
	flag.StringVar(&c.Addr, "addr", "127.0.0.1:0", "address of the server")
	into := flag.String("into", "", "a Markdown `file` to put the table into, between <!-- many --> and <!-- /many -->")
	part := flag.Bool("part", false, "print the figures as JSON, for one scenario, in this process")
	flag.Parse()
	if meter.Supported != nil {
		return meter.Supported
	}
	if *part {
		result, err := measure(*names, c, os.Stderr)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(result)
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var results []result
	for name := range strings.SplitSeq(*names, ",") {
		r, err := measureApart(ctx, name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		results = append(results, r)
	}
	text := fmt.Sprintf("%s, %s, `%s`\n\n%s", meter.Machine(), time.Now().Format(time.DateOnly), command(os.Args[1:]), table(results))
	if million := paper(results); million != "" {
		text += "\n" + million
	}
	if *into != "" {
		return report.Replace(*into, "many", text)
	}
	fmt.Print(text)
	return nil
}

// command returns what to type to get the table again.
func command(args []string) string {
	return strings.TrimSpace("go run ./many " + strings.Join(args, " "))
}

// measureApart measures in a process of its own, in which nothing was before.
func measureApart(ctx context.Context, name string) (r result, err error) {
	self, err := os.Executable()
	if err != nil {
		return r, err
	}
	args := slices.Concat(os.Args[1:], []string{"-run", name, "-part"})
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return r, cmp.Or(context.Cause(ctx), err)
	}
	return r, json.Unmarshal(out, &r)
}
