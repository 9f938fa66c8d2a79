"How far apart two colours look."
import cv2, numpy as np

def lab(rgb):
    "CIELAB of colours, uint8 RGB of any shape (..., 3)."
    rgb = np.float32(rgb)/255
    return cv2.cvtColor(rgb.reshape(1, -1, 3), cv2.COLOR_RGB2LAB).astype(float).reshape(rgb.shape)

def ciede2000(one, two):
    "The CIEDE2000 difference of CIELAB colours; shapes broadcast."
    (L1, a1, b1), (L2, a2, b2) = (np.moveaxis(np.asarray(c, float), -1, 0) for c in (one, two))
    seventh = lambda c: np.sqrt(c**7/(c**7 + 25.**7))
    g = 1.5 - .5*seventh((np.hypot(a1, b1) + np.hypot(a2, b2))/2)
    C1, C2 = np.hypot(g*a1, b1), np.hypot(g*a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, g*a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    grey = C1*C2 == 0
    turn = np.where(grey, 0, (h2 - h1 + 180) % 360 - 180)
    dL, dC, dH = L2 - L1, C2 - C1, 2*np.sqrt(C1*C2)*np.sin(np.radians(turn/2))
    L, C, h = (L1 + L2)/2, (C1 + C2)/2, np.where(grey, h1 + h2, h1 + turn/2)
    cos = lambda times, shift: np.cos(np.radians(times*h + shift))
    T = 1 - .17*cos(1, -30) + .24*cos(2, 0) + .32*cos(3, 6) - .2*cos(4, -63)
    dL, dC, dH = dL/(1 + .015*(L - 50)**2/np.sqrt(20 + (L - 50)**2)), dC/(1 + .045*C), dH/(1 + .015*C*T)
    twist = -2*seventh(C)*np.sin(np.radians(60*np.exp(-((h % 360 - 275)/25)**2)))
    return np.sqrt(dL**2 + dC**2 + dH**2 + twist*dC*dH)
