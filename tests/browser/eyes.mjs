// What tests look at pages with: a browser, their looks on a phone and in the dark, and what axe finds wrong with them.
// Not here: what is done on them (`review.mjs`, `member.mjs`).
import { createRequire } from 'node:module';

const require = createRequire(process.env.ENVFORGE_TEST_BROWSER_DIR + '/');
const { chromium } = require('playwright-core');
const { AxeBuilder } = require('@axe-core/playwright');

export const open = () => chromium.launch({
  executablePath: process.env.ENVFORGE_TEST_CHROMIUM,
  args: ['--no-sandbox', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});

// On a busy machine Chromium has no frame to show now and then. Nothing of the page's is wrong then, and a later one is there.
export const picture = async (page, path) => {
  for (let left = 3; ; left -= 1) {
    try {
      return await page.screenshot({ path });
    } catch (error) {
      if (left === 0 || !error.message.includes('Unable to capture screenshot')) throw error;
      await page.waitForTimeout(300);
    }
  }
};

// How our own pages look on a phone and in the dark: what sticks out of the window, and how well text stands out.
export const DESK = { width: 1200, height: 800 };
const VIEWS = [
  { name: 'phone', size: { width: 360, height: 740 }, scheme: 'light' },
  { name: 'phone-dark', size: { width: 360, height: 740 }, scheme: 'dark' },
  { name: 'desk-dark', size: DESK, scheme: 'dark' },
];
export const looks = async (page, what, shots) => {
  const seen = [];
  for (const { name, size, scheme } of VIEWS) {
    await page.setViewportSize(size);
    await page.emulateMedia({ colorScheme: scheme });
    await picture(page, `${shots}/${what}-${name}.png`);
    const measured = await page.evaluate(() => {
      const light = (color) => {
        const parts = color.match(/[\d.]+/g).slice(0, 3).map((part) => Number(part) / 255);
        const linear = parts.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
      };
      const ground = light(getComputedStyle(document.querySelector('main')).backgroundColor);
      const contrasts = [...document.querySelectorAll('h1, p:not(.spoken):not(.problem), dt, dd, li, label')].map((element) => {
        const ink = light(getComputedStyle(element).color);
        return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
      });
      const sticksOut = [...document.querySelectorAll('main, main *:not(.spoken)')].filter((element) => {
        const box = element.getBoundingClientRect();
        return box.width > 0 && (box.right > innerWidth + 0.5 || box.left < -0.5);
      });
      return {
        overflow: document.documentElement.scrollWidth - innerWidth,
        sticksOut: sticksOut.map((element) => element.tagName),
        contrast: Math.min(...contrasts),
        ground,
      };
    });
    seen.push({ page: what, view: name, scheme, ...measured });
  }
  await page.setViewportSize(DESK);
  await page.emulateMedia({ colorScheme: null });
  return seen;
};

// What axe finds wrong with a page as it stands, in light and dark colours.
export const axe = async (page) => {
  const found = [];
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme });
    // In the page itself: axe's other way opens one more.
    const { violations, passes } = await new AxeBuilder({ page }).setLegacyMode().analyze();
    if (!passes.some((rule) => rule.id === 'color-contrast')) found.push(`${colorScheme}: contrasts were not looked at`);
    for (const { id, help, nodes } of violations) {
      found.push(`${colorScheme}: ${id}: ${help}: ${nodes.map((node) => node.html).join(' ')}`);
    }
  }
  await page.emulateMedia({ colorScheme: null });
  return found;
};
