package main

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// table returns the results in Markdown, a column for each scenario.
func table(results []result) string {
	var b strings.Builder
	row := func(name string, cell func(result) string) {
		fmt.Fprintf(&b, "| %s |", name)
		for _, r := range results {
			fmt.Fprintf(&b, " %s |", cell(r))
		}
		b.WriteByte('\n')
	}
	row("", title)
	b.WriteString("|---|" + strings.Repeat("--:|", len(results)) + "\n")
	row("clients", func(r result) string { return thousands(r.Clients) })
	row("connections", func(r result) string { return thousands(r.Conns) })
	row("connect all", func(r result) string { return duration(r.Connect) })
	row("memory for each, KB", func(r result) string { return kilobytes(r.RSS) })
	row("the same after a garbage collection", func(r result) string { return kilobytes(r.Collected) })
	row("idle, % of a processor", func(r result) string { return fmt.Sprintf("%.1f", 100*r.IdleCPU) })
	row("one event, until the last has it", func(r result) string { return duration(r.One.Last) })
	row("CPU, µs for each client", func(r result) string { return microseconds(r.One.CPU) })
	row(fmt.Sprintf("%d events together, until the last has them", burst), func(r result) string { return duration(r.Burst.Last) })
	row("CPU, µs for each event and client", func(r result) string { return microseconds(r.Burst.CPU) })
	row("`Broker.Shutdown` with all connected", func(r result) string { return duration(r.Shutdown) })
	row("`http.Server.Shutdown` after that", func(r result) string { return duration(r.Server) })
	row(fmt.Sprintf("all back, with the %d events that they missed", burst), func(r result) string { return duration(r.Return) })
	row("deliveries in all", func(r result) string { return thousands(int(r.Received)) })
	row("lost, doubled, damaged", func(r result) string { return fmt.Sprintf("%d, %d, %d", r.Lost, r.Doubled, r.Damaged) })
	return b.String()
}

func title(r result) string {
	network, way, _ := strings.Cut(r.Scenario, "/")
	return map[string]string{"tcp": "HTTP/1.1", "memory": "in memory", "h2c": "HTTP/2"}[network] + ", " +
		map[string]string{"serve": "`Serve`", "detach": "`Detach`"}[way]
}

func duration(d time.Duration) string {
	switch {
	case d >= 10*time.Second:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d >= time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return fmt.Sprintf("%d ms", d.Milliseconds())
}

func kilobytes(bytes float64) string      { return fmt.Sprintf("%.1f", bytes/1000) }
func microseconds(seconds float64) string { return fmt.Sprintf("%.2f", 1e6*seconds) }

// thousands writes a number with a comma after each three digits.
func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// What the arithmetic for a million clients takes as given.
const (
	million = 1_000_000

	// A socket of the kernel's and what belongs to it, from /proc/slabinfo of
	// Linux 6.18: TCP 2,368, sock_inode_cache 832, filp 192, dentry 192,
	// eventpoll_epi 128 bytes.
	socketBytes = 2368 + 832 + 192 + 192 + 128

	// An event of 100 bytes: its fields, then the headers of Ethernet (with the
	// gap and preamble, 38), IP (20) and TCP (32); the answer is an empty packet.
	frameBytes  = bytes + len("id: 1234567\ndata: \n\n")
	packetBytes = 38 + 20 + 32
)

// paper returns what a million clients need, from the figures for Detach over
// real connections, or "" without those.
func paper(results []result) string {
	i := slices.IndexFunc(results, func(r result) bool { return r.Scenario == "tcp/detach" })
	if i < 0 {
		return ""
	}
	r := results[i]
	memory := million * (r.RSS + socketBytes)
	serve := ""
	if i := slices.IndexFunc(results, func(r result) bool { return r.Scenario == "tcp/serve" }); i >= 0 {
		s := results[i]
		serve = fmt.Sprintf("; with `Serve` × (%.1f + %.1f) KB = %.0f GB", s.RSS/1000, socketBytes/1000.0, million*(s.RSS+socketBytes)/1e9)
	}
	returns := float64(r.Clients) / r.Return.Seconds()
	rows := [][3]string{
		{"memory", fmt.Sprintf("1,000,000 × (%.1f KB of the process + %.1f KB of the kernel for the socket)%s", r.RSS/1000, socketBytes/1000.0, serve), fmt.Sprintf("%.1f GB", memory/1e9)},
		{"CPU, one event a second to all", fmt.Sprintf("1,000,000 × %.2f µs", 1e6*r.One.CPU), fmt.Sprintf("%.1f processors", million*r.One.CPU)},
		{fmt.Sprintf("CPU, %d events together each second", burst), fmt.Sprintf("1,000,000 × %d × %.2f µs", burst, 1e6*r.Burst.CPU), fmt.Sprintf("%.1f processors", million*burst*r.Burst.CPU)},
		{"CPU, idle", fmt.Sprintf("%.1f%% of a processor × 1,000,000 / %s, keep-alives included", 100*r.IdleCPU, thousands(r.Clients)), fmt.Sprintf("%.1f processors", r.IdleCPU*million/float64(r.Clients))},
		{"time to the last client", fmt.Sprintf("%s × 1,000,000 / %s on one node of this kind", duration(r.One.Last), thousands(r.Clients)), duration(time.Duration(float64(r.One.Last) * million / float64(r.Clients)))},
		{"bandwidth, one event of 100 bytes a second", fmt.Sprintf("1,000,000 × (%d + %d bytes of headers) × 8", frameBytes, packetBytes), fmt.Sprintf("%.1f Gbit/s out, and a million packets a second", million*float64(frameBytes+packetBytes)*8/1e9)},
		{"bandwidth, keep-alives every 15 s", fmt.Sprintf("1,000,000 / 15 × (3 + %d bytes) × 8", packetBytes), fmt.Sprintf("%.0f Mbit/s out, 67,000 packets a second", million/15.0*(3+packetBytes)*8/1e6)},
		{"all come back", fmt.Sprintf("1,000,000 / %.0f a second, as measured with %s", returns, thousands(r.Clients)), fmt.Sprintf("%.0f s, without TLS", million/returns)},
		{"files", "one for each client; `fs.nr_open`, the most that a process may have, is 1,048,576 unless raised", "`LimitNOFILE=1048576`"},
		{"ports", "the server needs one, clients have their own; a proxy has 28,232 of its own for each address and port behind it", fmt.Sprintf("behind proxies %.0f pairs of addresses", math.Ceil(million/28232.0))},
	}
	var b strings.Builder
	b.WriteString("| a million clients | arithmetic | result |\n|---|---|--:|\n")
	for _, row := range rows {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", row[0], row[1], row[2])
	}
	return b.String()
}
