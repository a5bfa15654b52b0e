//go:build !linux

package tools

import (
	"os"
	"syscall"
)

func children() *syscall.SysProcAttr { return nil }

func kill(process int, _ syscall.Signal) {
	if p, err := os.FindProcess(process); err == nil {
		p.Kill()
	}
}
