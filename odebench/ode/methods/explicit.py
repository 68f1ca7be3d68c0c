"""Tableaus of explicit Runge-Kutta methods up to order 5, with their sources."""

from odebench.ode.methods.tableau import Tableau, error_weights

EULER = Tableau(
    name="euler",
    source="Euler 1768",
    order=1,
    c=(0.0,),
    a=((),),
    b=(1.0,),
)

MIDPOINT = Tableau(
    name="midpoint",
    source="Runge 1895",
    order=2,
    c=(0.0, 1 / 2),
    a=((), (1 / 2,)),
    b=(0.0, 1.0),
)

HEUN2 = Tableau(
    name="heun2",
    source="Heun 1900, the explicit trapezoidal rule",
    order=2,
    c=(0.0, 1.0),
    a=((), (1.0,)),
    b=(1 / 2, 1 / 2),
)

RALSTON = Tableau(
    name="ralston",
    source="Ralston 1962, the least error bound of order 2",
    order=2,
    c=(0.0, 2 / 3),
    a=((), (2 / 3,)),
    b=(1 / 4, 3 / 4),
)

HEUN3 = Tableau(
    name="heun3",
    source="Heun 1900",
    order=3,
    c=(0.0, 1 / 3, 2 / 3),
    a=((), (1 / 3,), (0.0, 2 / 3)),
    b=(1 / 4, 0.0, 3 / 4),
)

RK4 = Tableau(
    name="rk4",
    source="Kutta 1901, the 3/8 rule",
    order=4,
    c=(0.0, 1 / 3, 2 / 3, 1.0),
    a=((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
    b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
)

RK4_CLASSIC = Tableau(
    name="rk4_classic",
    source="Kutta 1901, the classical method",
    order=4,
    c=(0.0, 1 / 2, 1 / 2, 1.0),
    a=((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
)

# The embedded method is Euler's. The dense output is cubic Hermite interpolation from f at both ends of the step; f at
# the end is an extra stage.
ADAPTIVE_HEUN = Tableau(
    name="adaptive_heun",
    source="Heun 1900, with Euler 1768",
    order=2,
    c=(0.0, 1.0),
    a=((), (1.0,)),
    b=(1 / 2, 1 / 2),
    error=(-1 / 2, 1 / 2),
    extra_c=(1.0,),
    extra_a=((1 / 2, 1 / 2),),
    dense=((1.0, -1 / 2, 0.0), (0.0, 3 / 2, -1.0), (0.0, -1.0, 1.0)),
    dense_order=2,
)

# From "Low-order classical Runge-Kutta formulas with stepsize control", the pair of orders 1 and 2. Its third stage is
# not exactly f at the end of the step, but the extra stage is. The dense output is cubic Hermite interpolation.
FEHLBERG2 = Tableau(
    name="fehlberg2",
    source="Fehlberg 1969",
    order=2,
    c=(0.0, 1 / 2, 1.0),
    a=((), (1 / 2,), (1 / 256, 255 / 256)),
    b=(1 / 512, 255 / 256, 1 / 512),
    error=(-1 / 512, 0.0, 1 / 512),
    extra_c=(1.0,),
    extra_a=((1 / 512, 255 / 256, 1 / 512),),
    dense=((1.0, -1021 / 512, 255 / 256), (0.0, 765 / 256, -255 / 128), (0.0, 3 / 512, -1 / 256), (0.0, -1.0, 1.0)),
    dense_order=2,
)

# "A 3(2) pair of Runge-Kutta formulas". The dense output is cubic Hermite interpolation.
BOSH3 = Tableau(
    name="bosh3",
    source="Bogacki & Shampine 1989",
    order=3,
    c=(0.0, 1 / 2, 3 / 4, 1.0),
    a=((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    b=(2 / 9, 1 / 3, 4 / 9, 0.0),
    error=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
    dense=((1.0, -4 / 3, 5 / 9), (0.0, 1.0, -2 / 3), (0.0, 4 / 3, -8 / 9), (0.0, -1.0, 1.0)),
    dense_order=3,
)

_DOPRI5_B = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0)

# From "A family of embedded Runge-Kutta formulae". The embedded weights are those of Shampine's "Some practical
# Runge-Kutta formulas", as in SciPy and torchdiffeq, so that step counts are comparable; the paper has others.
DOPRI5 = Tableau(
    name="dopri5",
    source="Dormand & Prince 1980; error weights and dense output Shampine 1986",
    order=5,
    c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        _DOPRI5_B[:-1],
    ),
    b=_DOPRI5_B,
    error=error_weights(_DOPRI5_B, (1951 / 21600, 0.0, 22642 / 50085, 451 / 720, -12231 / 42400, 649 / 6300, 1 / 60)),
    dense=(
        (1.0, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
        (0.0, 0.0, 0.0, 0.0),
        (0.0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
        (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
        (0.0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632),
        (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
        (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
    ),
    dense_order=4,
)

_TSIT5_B = (
    0.09646076681806523,
    0.01,
    0.4798896504144996,
    1.379008574103742,
    -3.290069515436081,
    2.324710524099774,
    0.0,
)

# "Runge-Kutta pairs of order 5(4) satisfying only the first column simplifying assumption"
TSIT5 = Tableau(
    name="tsit5",
    source="Tsitouras 2011",
    order=5,
    c=(0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
    a=(
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
        _TSIT5_B[:-1],
    ),
    b=_TSIT5_B,
    error=(
        -0.00178001105222577714,
        -0.0008164344596567469,
        0.007880878010261995,
        -0.1447110071732629,
        0.5823571654525552,
        -0.45808210592918697,
        1 / 66,
    ),
    dense=(
        (1.0, -2.763706197274826, 2.9132554618219126, -1.0530884977290216),
        (0.0, 0.1317, -0.2234, 0.1017),
        (0.0, 3.9302962368947516, -5.941033872131505, 2.490627285651253),
        (0.0, -12.411077166933676, 30.33818863028232, -16.548102889244902),
        (0.0, 37.50931341651104, -88.1789048947664, 47.37952196281928),
        (0.0, -27.896526289197286, 65.09189467479366, -34.87065786149661),
        (0.0, 1.5, -4.0, 2.5),
    ),
    dense_order=4,
)
