//go:build !linux

package stall

import "errors"

var errNoLinux = errors.New("clients that do not read need Linux")

// Clients are connections of which nothing is read.
type Clients struct{}

// Connect fails here.
func Connect(addr, path string, n int) (*Clients, error) {
	return nil, errNoLinux
}

// Close does nothing here.
func (c *Clients) Close() {}

// Full fails here.
func Full() (int, error) { return 0, errNoLinux }
