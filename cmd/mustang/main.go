// SPDX-License-Identifier: Apache-2.0

// Command mustang is the daemon of the network driver and its command line, in one binary.
package main

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/mustang-net/mustang/bench"
)

func main() {
	// CNI: with CNI_COMMAND set a runtime calls us as its plugin. driver/cni takes over here, before
	// any argument is looked at.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	// A second signal ends the process at once, should the first one's clean end hang.
	context.AfterFunc(ctx, stop)
	code := run(ctx, env{
		args:   os.Args,
		stdin:  os.Stdin,
		stdout: os.Stdout,
		stderr: os.Stderr,
		getenv: os.Getenv,
		euid:   os.Geteuid(),
		open:   openHost,
		daemon: runDaemon,
		bench:  bench.Run,
	})
	stop()
	os.Exit(code)
}
