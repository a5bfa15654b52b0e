package tools

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// A Line leads from an nginx to a program, and can be cut: nginx answers 502 then.
type Line struct {
	URL string // of nginx

	mu      sync.Mutex // guards the fields below
	isCut   bool
	refused int               // connections since it was cut
	conns   map[net.Conn]bool // nginx's
}

// Nginx runs an nginx in front of the program at addr, which need not listen yet.
func Nginx(t testing.TB, addr string) *Line {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	own, dir := "127.0.0.1:"+FreePort(t), t.TempDir()
	conf := fmt.Sprintf(`
		pid %[1]s/pid;
		events {}
		http {
			access_log off;
			proxy_max_temp_file_size 0; # its worker may not write there
			client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
			server {
				listen %[2]s;
				location / {
					proxy_pass http://%[3]s;
					proxy_set_header Host $http_host;
				}
			}
		}`, dir, own, listener.Addr())
	if err := os.WriteFile(filepath.Join(dir, "conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	l := &Line{URL: "http://" + own, conns: map[net.Conn]bool{}}
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			accepting.Go(func() { l.connect(client, addr) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		l.Cut()
		accepting.Wait()
	})
	Start(t, dir, "nginx", "-e", "stderr", "-c", filepath.Join(dir, "conf"), "-g", "daemon off;").Listening(t, own)
	return l
}

// connect passes on what nginx and the program say until one of them ends.
func (l *Line) connect(client net.Conn, addr string) {
	defer client.Close()
	if !l.admit(client) {
		return
	}
	defer l.forget(client)
	server, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer server.Close()
	ended := make(chan bool, 2)
	go func() { io.Copy(server, client); ended <- true }()
	go func() { io.Copy(client, server); ended <- true }()
	<-ended
}

func (l *Line) admit(conn net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.isCut {
		l.refused++
		return false
	}
	l.conns[conn] = true
	return true
}

func (l *Line) forget(conn net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, conn)
}

// Cut ends all connections, and each new one at once.
func (l *Line) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.isCut, l.refused = true, 0
	for conn := range l.conns {
		conn.Close()
	}
}

// Mend lets connections through again, and returns how many it did not.
func (l *Line) Mend() (refused int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.isCut = false
	return l.refused
}
