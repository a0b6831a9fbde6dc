// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"time"

	"github.com/mustang-net/mustang/bench/turns"
)

// HelperCommand is the hidden command by which the program runs copies of itself, with a part and its arguments.
const HelperCommand = "bench-helper"

// The parts of a copy.
const (
	helperInside = "inside" // measures, in the namespaces that Run made
	helperServe  = "serve"  // CONGESTION ADDRESS…
	helperTurn   = "turn"   // KIND ADDRESS DURATION CONGESTION
	helperPause  = "pause"  // holds a container
)

// helper is a copy of this program.
func helper(args ...string) *exec.Cmd {
	return exec.Command("/proc/self/exe", append([]string{HelperCommand}, args...)...)
}

// Helper plays a part. It returns when the part is over.
func Helper(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	if len(args) == 0 {
		return errors.New("it is a part of `mustang bench`, which starts it")
	}
	switch part, args := args[0], args[1:]; {
	case part == helperInside && len(args) == 0:
		return inside(stdin)
	case part == helperServe && len(args) > 1:
		return serveTurns(args[0], args[1:])
	case part == helperTurn && len(args) == 4:
		return takeTurns(args, stdout)
	case part == helperPause && len(args) == 0:
		<-ctx.Done()
		return nil
	}
	return fmt.Errorf("%q is no part of `mustang bench`", args)
}

func serveTurns(congestion string, texts []string) error {
	var addrs []netip.AddrPort
	for _, text := range texts {
		addr, err := netip.ParseAddrPort(text)
		if err != nil {
			return err
		}
		addrs = append(addrs, addr)
	}
	return turns.Serve(congestion, addrs...)
}

func takeTurns(args []string, stdout io.Writer) error {
	addr, err := netip.ParseAddrPort(args[1])
	if err != nil {
		return err
	}
	duration, err := time.ParseDuration(args[2])
	if err != nil {
		return err
	}
	r, err := turns.Run(args[0], addr, duration, args[3])
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(r)
}
