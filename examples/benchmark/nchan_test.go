package benchmark

import (
	"cmp"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/seed22e817d0/sse/examples/benchmark/internal/meter"
)

// nchan is a module of nginx in C, and so the one here that is a process of its
// own: events are posted to it one by one.

const nchanConfig = `
load_module modules/ngx_nchan_module.so;
daemon off;
worker_processes auto;
worker_rlimit_nofile %[3]d;
pid %[1]s/pid;
error_log stderr crit;
events { worker_connections %[3]d; }
http {
	access_log off;
	keepalive_requests 1000000000;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	server {
		listen %[2]s;
		location = /events {
			nchan_subscriber eventsource;
			nchan_channel_id messages;
			nchan_subscriber_first_message newest;
		}
		location = /publish {
			nchan_publisher http;
			nchan_channel_id messages;
		}
	}
}
`

// nchanMissing returns why there is no nchan, if there is none.
func nchanMissing() error {
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		return fmt.Errorf("not installed: %w", err)
	}
	dir, err := os.MkdirTemp("", "nchan")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	config := filepath.Join(dir, "test.conf")
	text := fmt.Sprintf("load_module modules/ngx_nchan_module.so;\npid %s/pid;\nevents {}\n", dir)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	if out, err := exec.Command(nginx, "-t", "-q", "-c", config).CombinedOutput(); err != nil {
		first, _, _ := strings.Cut(string(out), "\n")
		return fmt.Errorf("not installed: %s", cmp.Or(first, err.Error()))
	}
	return nil
}

func startNchan(int) *server {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	addr := listener.Addr().String()
	listener.Close() // for nginx to listen there
	dir, err := os.MkdirTemp("", "nchan")
	must(err)
	must(os.Chmod(dir, 0o755)) // the workers have a user of their own
	files, err := meter.Files()
	must(err)
	config := filepath.Join(dir, "nginx.conf")
	must(os.WriteFile(config, fmt.Appendf(nil, nchanConfig, dir, addr, files), 0o644))
	nginx := exec.Command("nginx", "-c", config)
	nginx.Stderr = os.Stderr
	must(nginx.Start())
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
			break
		}
		if time.Now().After(deadline) {
			panic(err)
		}
	}
	return &server{
		addr: addr,
		publish: func(batch []message) {
			for _, m := range batch {
				response, err := http.Post("http://"+addr+"/publish", "text/plain", strings.NewReader(m.data))
				must(err)
				response.Body.Close()
				if response.StatusCode/100 != 2 {
					panic(response.Status)
				}
			}
		},
		cpu: func() time.Duration {
			cpu, err := meter.CPUOf(nginx.Process.Pid)
			must(err)
			return cpu
		},
		close: func() {
			http.DefaultClient.CloseIdleConnections()
			nginx.Process.Signal(os.Interrupt) // ends the workers too
			nginx.Wait()
			os.RemoveAll(dir)
		},
	}
}
