//go:build !linux

package load

import "errors"

func newTCP(*Fleet) (network, error) {
	return nil, errors.New("clients over TCP need epoll, and so Linux")
}
