// Package proxies has a configuration for each of seven proxies, to be copied,
// and the tests that show what they do to a stream.
package proxies

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"flag"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed22e817d0/sse"
	"github.com/seed22e817d0/sse/examples/interop/internal/tools"
)

// A proxy is a program and the configuration that lies beside this file.
type proxy struct {
	name   string
	config string
	http2  string // the address in config at which it speaks HTTP/2
	run    func(dir, config string) (program string, args []string)
	edits  []edit // what only the tests need
	idle   []edit // make the idle timeout of 60 s idleTimeout

	// keepAlives is how many keep-alives it takes, at most, until the broker
	// notices that a client has left. 0: it notices within a second.
	keepAlives map[string]int // by protocol
}

// An edit replaces text in a configuration, or in the arguments.
type edit struct{ before, after string }

var (
	nginx = proxy{
		name: "nginx", config: "nginx.conf", http2: "https://127.0.0.1:8443",
		run: func(dir, config string) (string, []string) {
			return "nginx", []string{"-p", dir, "-c", config, "-e", "stderr", "-g", "daemon off; pid nginx.pid;"}
		},
		edits: []edit{{"\nhttp {", "\nhttp {\naccess_log off; client_body_temp_path t; proxy_temp_path t;" +
			"fastcgi_temp_path t; uwsgi_temp_path t; scgi_temp_path t;"}},
		idle: []edit{{"proxy_read_timeout 60s", "proxy_read_timeout 4s"}},
	}
	haproxy = proxy{
		name: "HAProxy", config: "haproxy.cfg", http2: "https://127.0.0.1:8443",
		run: func(dir, config string) (string, []string) {
			return "haproxy", []string{"-db", "-f", config}
		},
		idle: []edit{{"timeout client 60s", "timeout client 4s"}, {"timeout server 60s", "timeout server 4s"}},
	}
	caddy = proxy{
		name: "Caddy", config: "Caddyfile", http2: "https://127.0.0.1:8443",
		run: func(dir, config string) (string, []string) {
			return "caddy", []string{"run", "--adapter", "caddyfile", "--config", config}
		},
		edits: []edit{{"admin off", "admin off\n\tdefault_bind 127.0.0.1"}},
		idle:  []edit{{"read_timeout 60s", "read_timeout 4s"}},
	}
	httpd = proxy{
		name: "Apache httpd", config: "httpd.conf", http2: "https://127.0.0.1:8443",
		run: func(dir, config string) (string, []string) {
			return "apache2", []string{"-D", "FOREGROUND", "-d", dir, "-f", config, "-C", "PidFile httpd.pid",
				"-C", "ErrorLog /dev/stderr", "-C", "User nobody", "-C", "Group nogroup"}
		},
		idle:       []edit{{"ProxyTimeout 60", "ProxyTimeout 4"}},
		keepAlives: map[string]int{"HTTP/1.1": 2, "HTTP/2": 1},
	}
	varnish = proxy{
		name: "Varnish", config: "varnish.vcl", http2: "http://127.0.0.1:8000",
		run: func(dir, config string) (string, []string) {
			return "varnishd", []string{"-F", "-j", "none", "-n", filepath.Join(dir, "work"), "-f", config,
				"-a", "127.0.0.1:8000", "-s", "malloc,16m", "-p", "feature=+http2",
				"-p", "pipe_timeout=60", "-p", "between_bytes_timeout=60", "-p", "idle_send_timeout=60"}
		},
		idle: []edit{
			{"pipe_timeout=60", "pipe_timeout=4"}, {"between_bytes_timeout=60", "between_bytes_timeout=4"},
			{"idle_send_timeout=60", "idle_send_timeout=2"},
		},
		keepAlives: map[string]int{"HTTP/1.1": 0, "HTTP/2": 2},
	}
	lighttpd = proxy{
		name: "lighttpd", config: "lighttpd.conf", http2: "https://127.0.0.1:8443",
		run: func(dir, config string) (string, []string) {
			return "lighttpd", []string{"-D", "-f", config}
		},
		idle:       []edit{{`"read-timeout" => 60`, `"read-timeout" => 4`}},
		keepAlives: map[string]int{"HTTP/1.1": 1},
	}
	squid = proxy{
		name: "squid", config: "squid.conf", // it speaks no HTTP/2
		run: func(dir, config string) (string, []string) {
			return "squid", []string{"-N", "-f", config}
		},
		edits: []edit{{"http_access", "pid_filename none\naccess_log none\ncache_log /dev/null\nhttp_access"}},
		idle:  []edit{{"read_timeout 60 seconds", "read_timeout 5 seconds"}},
	}
	all = []proxy{nginx, haproxy, caddy, httpd, varnish, lighttpd, squid}
)

// protocols returns those that a client can speak to the proxy.
func (p proxy) protocols() []string {
	if p.http2 == "" {
		return []string{"HTTP/1.1"}
	}
	return []string{"HTTP/1.1", "HTTP/2"}
}

// TestMain lets many tests run at once: they wait more than they compute.
func TestMain(m *testing.M) {
	if addr, n, ok := strings.Cut(os.Getenv(programVariable), " "); ok { // for TestClient
		events, _ := strconv.Atoi(n)
		if err := serveProgram(addr, events); err != nil {
			panic(err)
		}
		return
	}
	flag.Parse()
	if err := flag.Set("test.parallel", "16"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// TestProxies makes every check through every proxy, and with -v prints a table.
func TestProxies(t *testing.T) {
	var mu sync.Mutex
	figures := map[string]string{}
	// The group ends when its parallel tests have.
	t.Run("all", func(t *testing.T) {
		for _, p := range all {
			t.Run(p.name, func(t *testing.T) {
				t.Parallel()
				s := p.start(t)
				for _, serve := range []serve{plain, detached, chunked} {
					for _, protocol := range p.protocols() {
						for _, check := range checks {
							t.Run(serve.name+"/"+protocol+"/"+check.name, func(t *testing.T) {
								if !check.quick {
									t.Parallel()
								}
								figure, err := check.run(t, s, protocol, serve)
								if err != nil {
									t.Fatal(err)
								}
								mu.Lock()
								defer mu.Unlock()
								figures[p.name+protocol+serve.name+check.name] = figure
							})
						}
					}
				}
			})
		}
	})
	if !testing.Verbose() || t.Failed() {
		return
	}
	fmt.Println("| proxy | client speaks | first byte | event | client left: Serve | client left: Detach |")
	fmt.Println("|---|---|---|---|---|---|")
	for _, p := range all {
		for _, protocol := range p.protocols() {
			figure := func(check string) string { return figures[p.name+protocol+check] }
			fmt.Printf("| %s | %s | %s | %s | %s | %s |\n", p.name, protocol,
				figure("ServeFirstBytes"), figure("ServePrompt"), figure("ServeLeave"), figure("DetachLeave"))
		}
	}
}

// TestWhatMatters changes one thing at a time.
func TestWhatMatters(t *testing.T) {
	const deflate = "LoadModule filter_module /usr/lib/apache2/modules/mod_filter.so\n" +
		"LoadModule deflate_module /usr/lib/apache2/modules/mod_deflate.so\n" +
		"AddOutputFilterByType DEFLATE text/event-stream\n"
	tests := []struct {
		name     string
		proxy    proxy
		edits    []edit
		serve    serve // Serve, if it is not set
		protocol string
		check    func(*testing.T, *setup, string, serve) (string, error)
		want     string // part of the error; "": the stream is fine
	}{{
		name: "nginx with the buffering that our header turns off", proxy: nginx,
		serve:    withHeader("X-Accel-Buffering", "yes"),
		protocol: "HTTP/1.1", check: firstBytes, want: "no headers",
	}, {
		name: "nginx without the header but with proxy_buffering off", proxy: nginx,
		edits:    []edit{{"proxy_read_timeout", "proxy_buffering off; proxy_read_timeout"}},
		serve:    withHeader("X-Accel-Buffering", ""),
		protocol: "HTTP/1.1", check: prompt, want: "",
	}, {
		name: "nginx with compression", proxy: nginx,
		edits:    []edit{{"\t\tlocation", "\t\tgzip on; gzip_types text/event-stream;\n\t\tlocation"}},
		protocol: "HTTP/1.1", check: compressed(prompt), want: "",
	}, {
		name: "nginx with HTTP/1.1 to the program", proxy: nginx,
		edits:    []edit{{"proxy_read_timeout", `proxy_http_version 1.1; proxy_set_header Connection ""; proxy_read_timeout`}},
		protocol: "HTTP/1.1", check: prompt, want: "",
	}, {
		name: "nginx with few connections", proxy: nginx,
		edits:    []edit{{"worker_connections 1024", "worker_connections 100"}},
		protocol: "HTTP/1.1", check: many, want: "client",
	}, {
		name: "nginx without http2", proxy: nginx,
		edits:    []edit{{" ssl http2;", " ssl;"}},
		protocol: "HTTP/2", check: http2, want: "want h2",
	}, {
		name: "HAProxy without http-no-delay", proxy: haproxy,
		edits:    []edit{{"option http-no-delay", ""}},
		serve:    chunked,
		protocol: "HTTP/1.1", check: prompt, want: "late",
	}, {
		name: "HAProxy without abortonclose", proxy: haproxy,
		edits:    []edit{{"option abortonclose", ""}},
		protocol: "HTTP/1.1", check: leave, want: "keep-alive",
	}, {
		name: "HAProxy with compression, which our header turns off", proxy: haproxy,
		edits:    []edit{{"mode http\n", "mode http\n\tcompression algo gzip\n\tcompression type text/event-stream\n"}},
		serve:    chunked,
		protocol: "HTTP/1.1", check: prompt, want: "",
	}, {
		name: "HAProxy with compression", proxy: haproxy,
		edits:    []edit{{"mode http\n", "mode http\n\tcompression algo gzip\n\tcompression type text/event-stream\n"}},
		serve:    withHeader("Cache-Control", "no-cache"),
		protocol: "HTTP/1.1", check: prompt, want: "no event",
	}, {
		name: "HAProxy without h2", proxy: haproxy,
		edits:    []edit{{"alpn h2,http/1.1", "alpn http/1.1"}},
		protocol: "HTTP/2", check: http2, want: "want h2",
	}, {
		name: "Caddy with compression", proxy: caddy,
		edits:    []edit{{"(program) {", "(program) {\n\tencode gzip"}},
		protocol: "HTTP/1.1", check: prompt, want: "",
	}, {
		name: "httpd with compression", proxy: httpd,
		edits:    []edit{{"ServerName", deflate + "ServerName"}},
		protocol: "HTTP/1.1", check: compressed(prompt), want: "",
	}, {
		name: "httpd with few threads", proxy: httpd,
		edits:    []edit{{"MaxRequestWorkers 400", "MaxRequestWorkers 25"}},
		protocol: "HTTP/1.1", check: many, want: "client",
	}, {
		name: "httpd without h2", proxy: httpd,
		edits:    []edit{{"Protocols h2 http/1.1", "Protocols http/1.1"}},
		protocol: "HTTP/2", check: http2, want: "want h2",
	}, {
		name: "Varnish with pass in place of pipe: leaving", proxy: varnish,
		edits:    []edit{{"(pipe)", "(pass)"}},
		protocol: "HTTP/1.1", check: leave, want: "keep-alive",
	}, {
		name: "Varnish with pass in place of pipe: stalling", proxy: varnish,
		edits:    []edit{{"(pipe)", "(pass)"}},
		protocol: "HTTP/1.1", check: stalled, want: "not cut off",
	}, {
		name: "Varnish without the rule", proxy: varnish,
		edits:    []edit{{"return (pipe);", ""}},
		protocol: "HTTP/1.1", check: prompt, want: "",
	}, {
		name: "Varnish with compression", proxy: varnish,
		edits:    []edit{{"return (pipe);", ""}, {"sub vcl_recv", "sub vcl_backend_response { set beresp.do_gzip = true; }\nsub vcl_recv"}},
		protocol: "HTTP/1.1", check: firstBytes, want: "no first byte",
	}, {
		name: "Varnish without streaming", proxy: varnish,
		edits:    []edit{{"return (pipe);", ""}, {"sub vcl_recv", "sub vcl_backend_response { set beresp.do_stream = false; }\nsub vcl_recv"}},
		protocol: "HTTP/1.1", check: firstBytes, want: "no headers",
	}, {
		name: "Varnish with compression, in a pipe", proxy: varnish,
		edits:    []edit{{"sub vcl_recv", "sub vcl_backend_response { set beresp.do_gzip = true; }\nsub vcl_recv"}},
		protocol: "HTTP/1.1", check: prompt, want: "",
	}, {
		name: "lighttpd without stream-response-body", proxy: lighttpd,
		edits:    []edit{{"server.stream-response-body = 2", ""}},
		protocol: "HTTP/1.1", check: firstBytes, want: "no headers",
	}, {
		name: "lighttpd with stream-response-body = 1: events", proxy: lighttpd,
		edits:    []edit{{"stream-response-body = 2", "stream-response-body = 1"}},
		protocol: "HTTP/1.1", check: prompt, want: "",
	}, {
		name: "lighttpd with stream-response-body = 1: stalling", proxy: lighttpd,
		edits:    []edit{{"stream-response-body = 2", "stream-response-body = 1"}, {`"read-timeout" => 4`, `"read-timeout" => 60`}},
		protocol: "HTTP/1.1", check: stalled, want: "not cut off",
	}, {
		name: "lighttpd with compression", proxy: lighttpd,
		edits: []edit{{`"mod_openssl")`, `"mod_openssl", "mod_deflate")` + "\n" +
			`deflate.mimetypes = ("text/event-stream")` + "\n" + `deflate.allowed-encodings = ("gzip")`}},
		protocol: "HTTP/1.1", check: prompt, want: "",
	}, {
		name: "lighttpd without h2", proxy: lighttpd,
		edits:    []edit{{"server.port", `server.feature-flags = ("server.h2proto" => "disable")` + "\nserver.port"}},
		protocol: "HTTP/2", check: http2, want: "want h2",
	}, {
		name: "squid with an answer that is not in chunks", proxy: squid,
		serve:    endless,
		protocol: "HTTP/1.1", check: firstBytes, want: "",
	}, {
		name: "Varnish and an answer that is not in chunks", proxy: varnish,
		edits:    []edit{{"return (pipe);", ""}},
		serve:    endless,
		protocol: "HTTP/1.1", check: firstBytes, want: "no first byte",
	}}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if test.serve.handler == nil {
				test.serve = plain
			}
			figure, err := test.check(t, test.proxy.start(t, test.edits...), test.protocol, test.serve)
			switch {
			case err == nil && test.want != "":
				t.Errorf("got no error (%s), want one with %q", figure, test.want)
			case err != nil && (test.want == "" || !strings.Contains(err.Error(), test.want)):
				t.Errorf("got error %v, want one with %q", err, test.want)
			}
		})
	}
}

// endless begins a stream that ends with its connection, all in one packet.
var endless = serve{handler: func(*sse.Broker, chan<- error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		conn.Write([]byte("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" +
			"Cache-Control: no-cache\r\nConnection: close\r\n\r\nretry: 3000\n\n"))
		conn.Read(make([]byte, 1)) // until the proxy has enough
	})
}}

// A setup is a proxy that runs in front of a backend.
type setup struct {
	*backend
	proxy
	urls map[string]string // by protocol
}

// start runs the proxy with its configuration, edited, and with idleTimeout, in
// front of a backend.
func (p proxy) start(t *testing.T, edits ...edit) *setup {
	t.Helper()
	b := newBackend(t)
	s := p.startBefore(t, b.Listener.Addr().String(), slices.Concat(p.idle, edits)...)
	s.backend = b
	return s
}

// startBefore runs the proxy in front of a program at addr.
func (p proxy) startBefore(t *testing.T, addr string, edits ...edit) *setup {
	t.Helper()
	text, err := os.ReadFile(p.config)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, p.config)
	program, args := p.run(dir, file)
	setting := strings.Join(slices.Insert(slices.Clone(args), 0, string(text)), "\x00")
	for _, e := range slices.Concat(p.edits, edits) {
		if !strings.Contains(setting, e.before) {
			t.Fatalf("%s has no %q", p.config, e.before)
		}
		setting = strings.ReplaceAll(setting, e.before, e.after)
	}
	_, port, _ := net.SplitHostPort(addr)
	own := tools.FreePort(t)
	ports := strings.NewReplacer(
		"127.0.0.1:8080", addr,
		`.port = "8080"`, `.port = "`+port+`"`, // in Varnish's way
		`"port" => 8080`, `"port" => `+port, // in lighttpd's
		"parent 8080", "parent "+port, // in squid's
		"127.0.0.1:8000", "127.0.0.1:"+own,
		"server.port = 8000", "server.port = "+own,
		"127.0.0.1:8443", "127.0.0.1:"+tools.FreePort(t),
	)
	parts := strings.Split(ports.Replace(setting), "\x00")
	if err := os.WriteFile(file, []byte(parts[0]), 0o644); err != nil {
		t.Fatal(err)
	}
	writeCertificate(t, dir)

	process := tools.Start(t, dir, program, parts[1:]...)
	s := &setup{proxy: p, urls: map[string]string{"HTTP/1.1": ports.Replace("http://127.0.0.1:8000")}}
	if p.http2 != "" {
		s.urls["HTTP/2"] = ports.Replace(p.http2)
	}
	for _, url := range s.urls {
		_, addr, _ := strings.Cut(url, "://")
		process.Listening(t, addr)
	}
	return s
}

// writeCertificate writes cert.pem and key.pem. HAProxy looks for the key of
// cert.pem in cert.pem.key.
func writeCertificate(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "localhost"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	for name, text := range map[string][]byte{"cert.pem": certPEM, "key.pem": keyPEM, "cert.pem.key": keyPEM} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
