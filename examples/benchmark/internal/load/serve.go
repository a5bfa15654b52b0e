package load

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"time"
)

// The networks that a Fleet knows, see [Options].
const (
	TCP = "tcp" // HTTP/1.1, a connection for each client
	TLS = "tls" // the same over TLS
	H2C = "h2c" // HTTP/2 without TLS, Streams clients on each connection
	H2  = "h2"  // HTTP/2, which is over TLS, likewise
)

// Serve serves clients of a network, and only those, as s.Serve does.
func Serve(s *http.Server, l net.Listener, network string) error {
	s.Protocols = new(http.Protocols)
	switch network {
	case TCP, TLS:
		s.Protocols.SetHTTP1(true)
	case H2C:
		s.Protocols.SetUnencryptedHTTP2(true)
	case H2:
		s.Protocols.SetHTTP2(true)
	default:
		return errNetwork(network)
	}
	if !encrypted(network) {
		return s.Serve(l)
	}
	certificate, err := newCertificate()
	if err != nil {
		return err
	}
	s.TLSConfig = &tls.Config{Certificates: []tls.Certificate{certificate}}
	return s.ServeTLS(l, "", "")
}

func errNetwork(name string) error { return fmt.Errorf("no network is called %q", name) }

func encrypted(network string) bool { return network == TLS || network == H2 }

// newCertificate returns one that no client verifies, of the kind that most
// servers have.
func newCertificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		DNSNames:     []string{"localhost"},
		NotAfter:     time.Now().AddDate(1, 0, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// secure returns a connection over conn to a server that Serve has started, whose
// certificate nobody can verify.
func secure(conn net.Conn, protocol string) *tls.Conn {
	return tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}})
}
