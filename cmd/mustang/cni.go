// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/mustang-net/mustang/api"
	"github.com/mustang-net/mustang/config"
	"github.com/mustang-net/mustang/driver/cni"
)

// pluginTime bounds one call of a runtime's, most of which may be a wait for others.
const pluginTime = 30 * time.Second

// runPlugin does what a runtime asks for in its environment, and returns the exit code.
func runPlugin(ctx context.Context, e env) int {
	ctx, cancel := context.WithTimeout(ctx, pluginTime)
	defer cancel()
	p := cni.Plugin{Open: func(ctx context.Context) (cni.Host, func() error, error) {
		cfg, err := config.Load("", e.getenv)
		if err != nil {
			return nil, nil, err
		}
		return openCNI(ctx, cfg)
	}}
	return p.Run(ctx, "CNI plugin "+versionLine())
}

// openCNI returns a running daemon's host, or else one of our own, with the function that lets go of it. A daemon that
// is starting, or ending, is waited for.
func openCNI(ctx context.Context, cfg config.Config) (cni.Host, func() error, error) {
	return whenUnlocked(ctx, pluginTime, func(ctx context.Context) (cni.Host, func() error, error) { return openCNIOnce(ctx, cfg) })
}

func openCNIOnce(ctx context.Context, cfg config.Config) (cni.Host, func() error, error) {
	client, err := api.Dial(cfg.Socket)
	if err == nil {
		return client.CNI(), func() error { return nil }, nil
	}
	if !errors.Is(err, api.ErrNoDaemon) {
		return nil, nil, err
	}
	// One after another: the state is one process's at a time, and its own lock is not taken in turn.
	unlock, err := lockFile(ctx, cniLock(cfg))
	if err != nil {
		return nil, nil, err
	}
	if client, err := api.Dial(cfg.Socket); err == nil { // it has started while we waited
		return client.CNI(), unlock, nil
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	h, err := newHost(cfg, log, false)
	if err != nil {
		return nil, nil, errors.Join(err, unlock())
	}
	if err := h.takeUp(); err != nil {
		return nil, nil, errors.Join(err, h.close(), unlock())
	}
	return h.CNI(), func() error { return errors.Join(h.release(), unlock()) }, nil
}

// takeUp does what a daemon does at its start, as far as it is needed by containers that come and nobody has done it
// since the host has booted: the hooks stay, and loading them takes long.
func (h *host) takeUp() error {
	cookie, err := h.links.Cookie("")
	if err != nil {
		return err
	}
	_, known, err := h.datapath.Sandbox(cookie)
	if err == nil && !known {
		err = h.hook(h.datapath)
	}
	return errors.Join(err, h.driver.SyncUplinks())
}

// cniLock is the file that calls without a daemon, and a daemon that starts, take in turn.
func cniLock(cfg config.Config) string { return filepath.Join(cfg.StateDir, "cni.lock") }

// lockFile waits until the file is ours, and returns the function that gives it to the next.
func lockFile(ctx context.Context, path string) (unlock func() error, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("wait for other calls: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("wait for other calls: %w", err)
	}
	locked := make(chan error, 1)
	go func() { locked <- unix.Flock(int(f.Fd()), unix.LOCK_EX) }()
	select {
	case err := <-locked:
		if err != nil {
			return nil, errors.Join(fmt.Errorf("wait for other calls with %s: %w", path, err), f.Close())
		}
		return f.Close, nil
	case <-ctx.Done(): // our process ends, and with it the wait
		return nil, fmt.Errorf("wait for other calls with %s: %w", path, ctx.Err())
	}
}
