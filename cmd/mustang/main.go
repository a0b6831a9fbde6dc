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
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	// A second signal ends the process at once, should the first one's clean end hang.
	context.AfterFunc(ctx, stop)
	e := env{
		args:   os.Args,
		stdin:  os.Stdin,
		stdout: os.Stdout,
		stderr: os.Stderr,
		getenv: os.Getenv,
		euid:   os.Geteuid(),
		open:   openHost,
		daemon: runDaemon,
		bench:  bench.Run,
		purge:  runPurge,

		contradictions: contradictions,
	}
	var code int
	if os.Getenv("CNI_COMMAND") != "" { // a runtime calls us as its plugin, and gives no arguments
		code = runPlugin(ctx, e)
	} else {
		code = run(ctx, e)
	}
	stop()
	os.Exit(code)
}
