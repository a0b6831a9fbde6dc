// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"

	"github.com/mustang-net/mustang/driver/docker"
)

// linger is how long a daemon that cannot start answers the engine that it cannot. It is longer than a service manager takes
// to start it again, so that an engine that boots meanwhile is not kept waiting for long.
const linger = 2 * time.Second

// door is where the engine's calls come in. A socket that the service manager has made, and holds while no daemon runs, is
// answered from the first moment: an engine that boots waits in every call for its answer.
type door struct {
	plugin  *docker.Plugin
	sockets []net.Listener // handed over by the service manager; none: the daemon makes its own
	serving sync.WaitGroup
}

// openDoor takes over the service manager's sockets. It is called once.
func openDoor(log logrus.FieldLogger) (*door, error) {
	d := &door{plugin: docker.New(log)}
	sockets, err := activation.Listeners()
	for _, l := range sockets {
		if _, unix := l.(*net.UnixListener); !unix {
			return nil, errors.New("take the service manager's sockets: one of them is no listening unix socket: see ListenStream= in mustang.socket")
		}
		d.sockets = append(d.sockets, l)
	}
	for _, l := range d.sockets {
		d.serving.Go(func() {
			if err := d.plugin.Serve(l); err != nil {
				log.WithError(err).Error("serve Docker on the service manager's socket")
			}
		})
	}
	return d, err
}

// listen is the socket at path, or nil if the service manager's is answered already.
func (d *door) listen(path string) (net.Listener, error) {
	if len(d.sockets) > 0 {
		return nil, nil
	}
	return docker.Listen(path)
}

// close ends the calls. After a failure, those that wait are told of it first.
func (d *door) close(failure error) error {
	if failure != nil && len(d.sockets) > 0 && d.plugin.Refuse(failure) {
		notify("STATUS=" + failure.Error())
		time.Sleep(linger)
	}
	err := d.plugin.Close()
	d.serving.Wait()
	return err
}

// turnAway tells an engine that waits why the daemon does not even begin to start.
func turnAway(failure error, log logrus.FieldLogger) error {
	d, err := openDoor(log)
	if err != nil {
		return errors.Join(failure, err)
	}
	return errors.Join(failure, d.close(failure))
}

// notify tells the service manager, if there is one, of the daemon's state (sd_notify(3)).
func notify(state string) {
	_, _ = daemon.SdNotify(false, state) // nobody waits for it who is not there
}

// watchdog tells the service manager that the process is alive, as often as it wants to hear it.
func watchdog(ctx context.Context) error {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("read the service manager's WATCHDOG_USEC: %w", err)
	}
	if interval == 0 {
		return nil
	}
	return every(ctx, interval/4, func() error {
		notify(daemon.SdNotifyWatchdog)
		return nil
	})
}
