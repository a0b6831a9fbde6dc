// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"os"
)

func dockerModes() []string { return []string{"docker-bridge", "docker-macvlan", "docker-ipvlan"} }

type dockerEngine struct{ notes []string }

func startDocker(context.Context, string, []string) (*dockerEngine, error) { return &dockerEngine{}, nil }
func (d *dockerEngine) remove()                                              {}
func (d *dockerEngine) inherited() ([]dockerPair, []*os.File)                { return nil, nil }
