package meter

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Supported is nil where Now and the clients work.
var Supported error

// CPU returns the time that the process has used on all processors.
func CPU() time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		panic(err) // cannot be, with these arguments
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// CPUOf returns the time that a process with one thread and its children, which
// have one each, have used until now.
func CPUOf(pid int) (time.Duration, error) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	// Finer than what /proc tells elsewhere.
	stat, err := os.ReadFile(dir + "schedstat")
	if err != nil {
		return 0, err
	}
	var cpu time.Duration
	if _, err := fmt.Sscan(string(stat), &cpu); err != nil {
		return 0, fmt.Errorf("%sschedstat: %w", dir, err)
	}
	children, err := os.ReadFile(fmt.Sprintf("%stask/%d/children", dir, pid))
	if err != nil {
		return 0, err
	}
	for field := range strings.FieldsSeq(string(children)) {
		child, err := strconv.Atoi(field)
		if err != nil {
			return 0, err
		}
		more, err := CPUOf(child)
		if err != nil {
			return 0, err
		}
		cpu += more
	}
	return cpu, nil
}

// Now returns what the process has used.
func Now() (Usage, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return Usage{}, err
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	var kilobytes int64
	if _, err := fmt.Sscanf(rest, "%d kB", &kilobytes); err != nil {
		return Usage{}, fmt.Errorf("VmRSS in /proc/self/status: %w", err)
	}
	return Usage{CPU: CPU(), RSS: kilobytes << 10}, nil
}

// Files returns the most files that the process may have open.
func Files() (int, error) {
	var r unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r)
	return int(r.Cur), err
}

// Machine names the processors, their number, the system and Go's version.
func Machine() string {
	processor := "unknown processor"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, rest, ok := strings.Cut(string(info), "model name\t: "); ok {
			processor, _, _ = strings.Cut(rest, "\n")
		}
	}
	var u unix.Utsname
	unix.Uname(&u)
	release, _, _ := strings.Cut(unix.ByteSliceToString(u.Release[:]), "-")
	return fmt.Sprintf("%d × %s, Linux %s, %s", runtime.NumCPU(), strings.TrimSpace(processor), release, runtime.Version())
}
