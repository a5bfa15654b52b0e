// Package meter tells what this process, or another, has cost.
package meter

import (
	"errors"
	"time"
)

// ErrUnsupported is why there are no figures on this system.
var ErrUnsupported = errors.New("the benchmarks need Linux, for epoll and what it tells of a process")

// A Usage is what the process has used up to a moment.
type Usage struct {
	CPU time.Duration // of the process, in user and system mode
	RSS int64         // bytes of memory that are resident now
}
