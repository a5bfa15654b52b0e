//go:build !linux

package meter

import (
	"runtime"
	"time"
)

// Supported is nil where Now and the clients work.
var Supported = ErrUnsupported

// CPU returns nothing here.
func CPU() time.Duration { return 0 }

// CPUOf fails here.
func CPUOf(pid int) (time.Duration, error) { return 0, ErrUnsupported }

// Now fails here.
func Now() (Usage, error) { return Usage{}, ErrUnsupported }

// Files fails here.
func Files() (int, error) { return 0, ErrUnsupported }

// Machine names the system and Go's version.
func Machine() string { return runtime.GOOS + ", " + runtime.Version() }
