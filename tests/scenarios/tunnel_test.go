// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// tunnel joins the host and the outside by a tun device at each end, whose packets have no Ethernet header, until the script ends:
// `tunnel NAME`.
func tunnel(s *scenario, dir string, args []string) result {
	if len(args) != 1 {
		return failure("usage: tunnel NAME")
	}
	if _, err := os.Stat(tunFile); errors.Is(err, os.ErrNotExist) {
		if r := run(dir, "modprobe", "tun"); r.err != nil {
			return r
		}
	}
	outside, err := s.netns("lan")
	if err != nil {
		return result{err: err}
	}
	var ends [2]*os.File
	if ends[0], err = tun(args[0]); err != nil {
		return result{err: err}
	}
	s.onEnd = append(s.onEnd, func() { ends[0].Close() })
	err = inNetns(outside, func() error {
		ends[1], err = tun(args[0])
		return err
	})
	if err != nil {
		return result{err: err}
	}
	s.onEnd = append(s.onEnd, func() { ends[1].Close() })
	go carry(ends[0], ends[1])
	go carry(ends[1], ends[0])
	return result{}
}

const tunFile = "/dev/net/tun"

// tun makes a tun device in the namespace of the calling thread, which goes when the file is closed.
func tun(name string) (*os.File, error) {
	fd, err := unix.Open(tunFile, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make the tun device %s: open %s: %w", name, tunFile, err)
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make the tun device %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// carry takes packets from one device to the other until one is closed. What a device that is down does not take is lost.
func carry(from, to *os.File) {
	packet := make([]byte, 1<<16)
	for {
		n, err := from.Read(packet)
		if err != nil {
			return
		}
		_, _ = to.Write(packet[:n])
	}
}
