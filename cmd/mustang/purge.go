// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"github.com/mustang-net/mustang/api"
	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/config"
	"github.com/mustang-net/mustang/driver"
	"github.com/mustang-net/mustang/driver/cni"
	"github.com/mustang-net/mustang/state"
)

// purgeOptions are the flags of `mustang purge`.
type purgeOptions struct {
	force bool // from under running containers, too
	state bool // and forget everything
}

func purgeCommand(e env) *cli.Command {
	return verb{
		name: "purge", usage: "remove everything of mustang's from the kernel, as before it is uninstalled",
		about: "Devices, programs, maps, routes and nftables go; networks, leases and services are kept, unless --state is given,\n" +
			"and a daemon that starts makes everything anew. The daemon must be stopped.",
		flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Usage: "also take their networks from containers that run", DisableDefaultText: true},
			&cli.BoolFlag{Name: "state", Usage: "also forget networks, leases and services, and remove the files of CNI networks that mustang network ls shows", DisableDefaultText: true},
		},
		run: func(c *cli.Context) error {
			cfg, err := e.config(c)
			if err != nil {
				return err
			}
			return e.explain(e.purge(c.Context, cfg, purgeOptions{force: c.Bool("force"), state: c.Bool("state")}))
		},
	}.command()
}

// runPurge works on a copy of the state, so that what is to be kept is never half removed.
func runPurge(ctx context.Context, cfg config.Config, o purgeOptions) error {
	if _, err := api.Dial(cfg.Socket); !errors.Is(err, api.ErrNoDaemon) {
		return errors.New("the daemon runs: stop it first (systemctl stop mustang.socket mustang.service)")
	}
	kept := cfg.StateDir
	release, err := shutOut(ctx, cfg)
	if err != nil {
		return err
	}
	defer release() //nolint:errcheck // it ends with the process at the latest
	aside, err := os.MkdirTemp("", "mustang-purge-")
	if err != nil {
		return fmt.Errorf("copy the state: %w", err)
	}
	defer os.RemoveAll(aside)
	if err := copyState(kept, aside, o); err != nil {
		return err
	}
	cfg.StateDir = aside
	if err := purgeKernel(ctx, cfg, o); err != nil {
		return err
	}
	if !o.state {
		return nil
	}
	if err := errors.Join(os.RemoveAll(filepath.Join(kept, stateFile)), os.RemoveAll(cniLock(config.Config{StateDir: kept}))); err != nil {
		return fmt.Errorf("forget the state: %w", err)
	}
	_ = os.Remove(kept) // unless somebody else has something there
	return nil
}

// shutOut has runtimes' calls, and a daemon that starts, wait until its end is called: what they made meanwhile would be half removed.
func shutOut(ctx context.Context, cfg config.Config) (end func() error, err error) {
	if _, err := os.Stat(cfg.StateDir); errors.Is(err, fs.ErrNotExist) {
		return func() error { return nil }, nil // nobody has ever called
	}
	ctx, cancel := context.WithTimeout(ctx, pluginTime)
	defer cancel()
	return lockFile(ctx, cniLock(cfg))
}

// copyState copies the state while nobody else has it open. One that cannot be read is no obstacle to forgetting it.
func copyState(from, to string, o purgeOptions) error {
	path := filepath.Join(from, stateFile)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	open, err := state.Open(path, state.Options{})
	if err != nil {
		if o.force && o.state && !errors.Is(err, state.ErrLocked) {
			return nil
		}
		return err
	}
	defer open.Close() //nolint:errcheck // nothing was written
	text, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(filepath.Join(to, stateFile), text, 0o600)
	}
	if err != nil {
		return fmt.Errorf("copy the state: %w", err)
	}
	return nil
}

// purgeKernel removes what is ours from the kernel, by a state that it empties.
func purgeKernel(ctx context.Context, cfg config.Config, o purgeOptions) error {
	log := logrus.New()
	log.SetOutput(io.Discard)
	h, err := newHost(cfg, log, false)
	if err != nil {
		return err
	}
	used, err := h.driver.InUse()
	if err != nil {
		return errors.Join(err, h.close())
	}
	if used > 0 && !o.force {
		return errors.Join(fmt.Errorf("%d endpoints of running containers would lose their network: stop these first, or use --force", used), h.close())
	}
	var files []error
	for _, n := range h.driver.Networks() {
		if o.state && n.Source == driver.SourceCNI {
			files = append(files, cni.Remove(cfg.CNIConfDir, n.Name))
		}
	}
	err = errors.Join(h.driver.Purge(), h.close())
	return errors.Join(err, bpf.RemoveAll(cfg.BPFFS), errors.Join(files...))
}
