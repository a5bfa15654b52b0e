package tools

import "syscall"

// children makes a program the head of a process group of its own, and has it end
// with the tests even if they are killed.
func children() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}

// kill sends the signal to the group.
func kill(group int, sig syscall.Signal) { syscall.Kill(-group, sig) }
